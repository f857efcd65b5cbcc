// The host part of the fusion loss on the CPU: outputs, threads with their scratch memory, final sums.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "../fusion_loss_host.h"
#include "dispatch.h"

MMIF_DECLARE(fusion_loss_fwd, const FusionLossParams& p, int64_t chunk, void* scratch)
MMIF_DECLARE(fusion_loss_bwd, const FusionLossParams& p, int64_t chunk, void* scratch)

namespace mmif {
namespace {

using Kernel = void (*)(const FusionLossParams& p, int64_t chunk, void* scratch);

void run(Kernel kernel, FusionLossParams& p) {
  const int64_t size = p.dtype == DType::kDouble ? sizeof(double) : sizeof(float), edge = kScratchEdge / size;
  p.pitch = (p.width + edge - 1) / edge * edge + 2 * edge;
  const size_t bytes = static_cast<size_t>(kScratchRows * p.pitch * size);
  at::parallel_for(0, p.batch * p.chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<char> memory(bytes + kScratchEdge);  // zeros
    void* scratch = memory.data();
    size_t space = memory.size();
    std::align(kScratchEdge, bytes, scratch, space);
    for (int64_t chunk = begin; chunk < end; ++chunk) kernel(p, chunk, scratch);
  });
}

template <typename T>
void sum_terms(const FusionLossParams& p) {
  const int64_t pixels = p.height * p.width;
  const int64_t windows = (p.height - kSsimWindow + 1) * (p.width - kSsimWindow + 1);
  for (int64_t image = 0; image < p.batch; ++image) {
    for (int term = 0; term < 3; ++term) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
        sum += p.partial[(image * p.chunks + chunk) * 3 + term];
      static_cast<T*>(p.terms)[image * 3 + term] = static_cast<T>(sum / (term < 2 ? pixels : windows));
    }
  }
}

FusionLossOutputs fusion_loss(const at::Tensor& f, const at::Tensor& a, const at::Tensor& b,
                              const std::optional<at::Tensor>& wa, const std::optional<at::Tensor>& wb,
                              double c1, double c2) {
  FusionLossArguments arguments = fusion_loss_arguments("fusion_loss", f, a, b, wa, wb, true);
  FusionLossParams& p = arguments.params;
  set_constants("fusion_loss", p, c1, c2);
  const FusionLossOutputs out = fusion_loss_outputs(p, f);
  if (p.batch == 0) return out;
  p.chunks = (p.height + kChunkRows - 1) / kChunkRows;
  std::vector<double> partial(static_cast<size_t>(p.batch * p.chunks * 3));
  p.partial = partial.data();
  run([](const FusionLossParams& p, int64_t chunk, void* s) { MMIF_DISPATCH(fusion_loss_fwd, p, chunk, s); },
      p);
  p.dtype == DType::kDouble ? sum_terms<double>(p) : sum_terms<float>(p);
  return out;
}

at::Tensor fusion_loss_bwd(const at::Tensor& d_terms, const at::Tensor& f, const at::Tensor& a,
                           const at::Tensor& b, const std::optional<at::Tensor>& wa,
                           const std::optional<at::Tensor>& wb, const at::Tensor& moments,
                           const at::Tensor& choices) {
  constexpr const char* op = "fusion_loss_bwd";
  FusionLossArguments arguments = fusion_loss_arguments(op, f, a, b, wa, wb, true);
  FusionLossParams& p = arguments.params;
  const FusionLossGradients gradients = fusion_loss_gradients(op, arguments, d_terms, moments, choices);
  if (p.batch == 0) return gradients.d_f;
  p.chunks = (p.height + kChunkRows - 1) / kChunkRows;
  run([](const FusionLossParams& p, int64_t chunk, void* s) { MMIF_DISPATCH(fusion_loss_bwd, p, chunk, s); },
      p);
  return gradients.d_f;
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CPU, m) {
  m.impl("fusion_loss", &mmif::fusion_loss);
  m.impl("fusion_loss_bwd", &mmif::fusion_loss_bwd);
}
