// The host part of the fusion loss on CUDA: device, outputs, launches on the current stream.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../fusion_loss_host.h"
#include "fusion_loss_launch.h"
#include "launch.h"

namespace mmif {
namespace {

void set_chunks(FusionLossParams& p) { p.chunks = fusion_loss_chunks(p.height, p.width); }

FusionLossOutputs fusion_loss(const at::Tensor& f, const at::Tensor& a, const at::Tensor& b,
                              const std::optional<at::Tensor>& wa, const std::optional<at::Tensor>& wb,
                              double c1, double c2) {
  const c10::cuda::CUDAGuard guard(f.device());
  FusionLossArguments arguments = fusion_loss_arguments("fusion_loss", f, a, b, wa, wb, false);
  FusionLossParams& p = arguments.params;
  set_constants("fusion_loss", p, c1, c2);
  const FusionLossOutputs out = fusion_loss_outputs(p, f);
  if (p.batch == 0) return out;
  set_chunks(p);
  // Freed on return and perhaps reused, but only by this stream, after the kernels.
  const at::Tensor partial = at::empty({p.batch, p.chunks, 3}, f.options().dtype(at::kDouble));
  p.partial = partial.data_ptr<double>();
  MMIF_LAUNCH("fusion_loss", fusion_loss_fwd_launch(p, c10::cuda::getCurrentCUDAStream()));
  return out;
}

at::Tensor fusion_loss_bwd(const at::Tensor& d_terms, const at::Tensor& f, const at::Tensor& a,
                           const at::Tensor& b, const std::optional<at::Tensor>& wa,
                           const std::optional<at::Tensor>& wb, const at::Tensor& moments,
                           const at::Tensor& choices) {
  constexpr const char* op = "fusion_loss_bwd";
  const c10::cuda::CUDAGuard guard(f.device());
  FusionLossArguments arguments = fusion_loss_arguments(op, f, a, b, wa, wb, false);
  FusionLossParams& p = arguments.params;
  const FusionLossGradients gradients = fusion_loss_gradients(op, arguments, d_terms, moments, choices);
  if (p.batch == 0) return gradients.d_f;
  set_chunks(p);
  MMIF_LAUNCH(op, fusion_loss_bwd_launch(p, c10::cuda::getCurrentCUDAStream()));
  return gradients.d_f;
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CUDA, m) {
  m.impl("fusion_loss", &mmif::fusion_loss);
  m.impl("fusion_loss_bwd", &mmif::fusion_loss_bwd);
}
