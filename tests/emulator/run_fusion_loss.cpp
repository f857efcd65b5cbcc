// Runs the fusion loss's CUDA kernels under the emulator: run_fusion_loss CASES RESULTS.
//
// CASES is a sequence of: a Header, then the storage of f, a, b (wa, wb), then d_terms. RESULTS gets for
// each: terms, moments, choices, d_f. Every array has its exact size on the heap, for AddressSanitizer, and
// what the kernels write begins as NaN. tests/ops/test_cuda_fusion_loss.py is the other side.
#include <cstdio>
#include <vector>

#include "cases.h"
#include "csrc/cuda/fusion_loss.cuh"

namespace {

struct Header {
  int64_t batch, height, width, row_stride, apart, between, start, weighted, seed;
  double c1, c2;
};

void run(const Header& h, const double* gaussian, std::FILE* cases, std::FILE* results) {
  mmif::FusionLossParams p{};
  p.dtype = mmif::DType::kFloat;
  p.batch = h.batch, p.height = h.height, p.width = h.width;
  p.c1 = h.c1, p.c2 = h.c2;
  p.chunks = mmif::fusion_loss_chunks(h.height, h.width);
  std::copy(gaussian, gaussian + mmif::kSsimWindow, p.gaussian);
  // Each image has strides of its own. It ends with its last pixel: what would pad the last row is not there.
  std::vector<Bytes> storage;
  mmif::FusionLossImage* const images[] = {&p.f, &p.a, &p.b, &p.wa, &p.wb};
  for (int i = 0; i < (h.weighted ? 5 : 3); ++i) {
    const int64_t row = h.row_stride + i * h.apart, image = h.height * row + h.between;
    const int64_t last = (h.batch - 1) * image + (h.height - 1) * row + h.width;
    storage.push_back(read(cases, h.batch ? (h.start + last) * sizeof(float) : 0));
    const size_t first = h.batch ? h.start * sizeof(float) : 0;
    *images[i] = {storage.back().data() + first, image, row};
  }
  const Bytes d_terms = read(cases, h.batch * 3 * sizeof(float));
  const size_t pixels = h.batch * h.height * h.width;
  const size_t windows = h.batch * (h.height - mmif::kSsimWindow + 1) * (h.width - mmif::kSsimWindow + 1);
  Bytes terms = nan(d_terms.size()), moments = nan(windows * 4 * sizeof(float)), choices = nan(pixels);
  Bytes d_f = nan(pixels * sizeof(float)), partial = nan(h.batch * p.chunks * 3 * sizeof(double));
  p.terms = terms.data(), p.moments = moments.data(), p.d_f = d_f.data(), p.d_terms = d_terms.data();
  p.choices = reinterpret_cast<uint8_t*>(choices.data());
  p.partial = reinterpret_cast<double*>(partial.data());
  emu::state.seed = static_cast<unsigned>(h.seed);
  check(mmif::fusion_loss_fwd_launch(p, nullptr) == cudaSuccess, "forward was not launched");
  check(mmif::fusion_loss_bwd_launch(p, nullptr) == cudaSuccess, "backward was not launched");
  for (const Bytes* x : {&terms, &moments, &choices, &d_f}) write(results, *x);
}

}  // namespace

int main(int count, char** arguments) {
  check(count == 3, "arguments: CASES RESULTS");
  std::FILE *cases = std::fopen(arguments[1], "rb"), *results = std::fopen(arguments[2], "wb");
  check(cases && results, "cannot open the files");
  double gaussian[mmif::kSsimWindow];
  check(std::fread(gaussian, sizeof(gaussian), 1, cases) == 1, "no Gaussian");
  Header header;
  while (std::fread(&header, sizeof(header), 1, cases) == 1) run(header, gaussian, cases, results);
  return std::fclose(cases) || std::fclose(results);
}
