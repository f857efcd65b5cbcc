// Runs window attention's CUDA kernels under the emulator: run_window_attention CASES RESULTS.
//
// CASES is a sequence of: a Header, then qkv's storage, the bias table, d_out's storage. RESULTS gets for
// each: out, lse, d_qkv, d_bias_table. Every array has its exact size on the heap, for AddressSanitizer, and
// what the kernels write begins as NaN. tests/ops/test_cuda_kernels.py is the other side.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cases.h"
#include "csrc/cuda/window_attention.cuh"

namespace {

struct Header {
  int64_t dtype, batch, height, width, heads, head_dim, window, shift;
  int64_t qkv_stride[5], qkv_offset, qkv_elements;
  int64_t d_out_stride[4], d_out_offset, d_out_elements;
  int64_t chunks, seed, refused;  // refused: what the kernels cannot read must not be launched
};

void run(const Header& h, std::FILE* cases, std::FILE* results) {
  mmif::WindowAttentionParams p{};
  p.dtype = static_cast<mmif::DType>(h.dtype);
  const size_t element = p.dtype == mmif::DType::kFloat ? 4 : 2;
  const size_t offsets = (2 * h.window - 1) * (2 * h.window - 1);
  const size_t rows = h.batch * h.height * h.width * h.heads;
  const Bytes qkv = read(cases, h.qkv_elements * element), bias = read(cases, offsets * h.heads * 4),
              d_out = read(cases, h.d_out_elements * element);
  Bytes out = nan(rows * h.head_dim * element), lse = nan(rows * 4), d_qkv = nan(3 * out.size()),
        partial = nan(h.chunks * h.heads * offsets * 4), d_bias = nan(bias.size());

  p.batch = h.batch, p.height = h.height, p.width = h.width;
  p.heads = h.heads, p.head_dim = h.head_dim, p.window = h.window, p.shift = h.shift;
  p.scale = 1 / std::sqrt(static_cast<double>(h.head_dim));
  p.qkv = qkv.data() + h.qkv_offset * element, p.bias_table = bias.data();
  std::memcpy(p.qkv_stride, h.qkv_stride, sizeof(p.qkv_stride));
  p.out = out.data(), p.lse = lse.data(), p.chunks = h.chunks;
  emu::state.seed = static_cast<unsigned>(h.seed);
  if (h.refused) {
    check(mmif::window_attention_fwd_launch(p, nullptr) == cudaErrorInvalidValue, "forward was launched");
    return;
  }
  check(mmif::window_attention_fwd_launch(p, nullptr) == cudaSuccess, "forward was not launched");

  p.d_out = d_out.data() + h.d_out_offset * element;
  std::memcpy(p.d_out_stride, h.d_out_stride, sizeof(p.d_out_stride));
  p.d_qkv = d_qkv.data(), p.d_bias_partial = partial.data();
  check(mmif::window_attention_bwd_launch(p, nullptr) == cudaSuccess, "backward was not launched");
  if (h.chunks)
    check(mmif::window_attention_d_bias_launch(p, reinterpret_cast<float*>(d_bias.data()), nullptr) ==
              cudaSuccess,
          "the sum of d_bias was not launched");
  for (const Bytes* x : {&out, &lse, &d_qkv, &d_bias}) write(results, *x);
}

}  // namespace

int main(int count, char** arguments) {
  check(count == 3, "arguments: CASES RESULTS");
  std::FILE *cases = std::fopen(arguments[1], "rb"), *results = std::fopen(arguments[2], "wb");
  check(cases && results, "cannot open the files");
  Header header;
  while (std::fread(&header, sizeof(header), 1, cases) == 1) run(header, cases, results);
  return std::fclose(cases) || std::fclose(results);
}
