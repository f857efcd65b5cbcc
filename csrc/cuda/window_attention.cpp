// The host part of window attention on CUDA: checks, outputs, device and stream; the kernels are in *.cu.
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../window_attention_host.h"
#include "launch.h"
#include "window_attention_launch.h"

namespace mmif {
namespace {

// Blocks a head in backward: about two waves of blocks on a large card at two heads. A constant, not a
// property of the card, so that every card sums d_bias in the same order.
constexpr int64_t kChunks = 512;

WindowAttentionParams params(at::Tensor& qkv, at::Tensor& bias, int64_t window, int64_t shift) {
  const WindowAttentionParams p = window_attention_params(qkv, bias, window, shift);
  MMIF_CHECK("window_attention", "qkv", qkv.scalar_type(), "float32, float16, bfloat16 on CUDA",
             p.dtype != DType::kDouble);
  return p;
}

std::tuple<at::Tensor, at::Tensor> window_attention(const at::Tensor& qkv_in, const at::Tensor& bias_in,
                                                    int64_t window, int64_t shift) {
  const c10::cuda::CUDAGuard guard(qkv_in.device());
  at::Tensor qkv = qkv_in, bias = bias_in;
  WindowAttentionParams p = params(qkv, bias, window, shift);
  const at::Tensor out = at::empty({p.batch, p.height, p.width, p.heads, p.head_dim}, qkv.options());
  const at::Tensor lse = at::empty({p.batch, p.heads, p.height, p.width}, bias.options());
  if (out.numel() == 0) return {out, lse};
  p.out = out.data_ptr();
  p.lse = lse.data_ptr();
  MMIF_LAUNCH("window_attention", window_attention_fwd_launch(p, c10::cuda::getCurrentCUDAStream()));
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor> window_attention_bwd(const at::Tensor& d_out_in, const at::Tensor& qkv_in,
                                                        const at::Tensor& bias_in, const at::Tensor& out_in,
                                                        const at::Tensor& lse, int64_t window,
                                                        int64_t shift) {
  const c10::cuda::CUDAGuard guard(qkv_in.device());
  at::Tensor d_out = d_out_in, qkv = qkv_in, bias = bias_in;
  // Its rows are read 16 bytes at a time: what forward made is aligned, a view of it may not be.
  const bool aligned = reinterpret_cast<uintptr_t>(out_in.const_data_ptr()) % 16 == 0;
  const at::Tensor out = aligned ? out_in : out_in.clone();
  WindowAttentionParams p = params(qkv, bias, window, shift);
  window_attention_add_gradient(p, d_out, qkv, out, lse);
  const at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
  if (out.numel() == 0) return {d_qkv, at::zeros(bias.sizes(), bias.options())};
  p.chunks = std::min(kChunks, window_count(p));
  const at::Tensor partial = at::empty({p.chunks, p.heads, bias.size(0)}, bias.options());
  const at::Tensor d_bias = at::empty(bias.sizes(), bias.options());
  p.d_qkv = d_qkv.data_ptr();
  p.d_bias_partial = partial.data_ptr();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  MMIF_LAUNCH("window_attention_bwd", window_attention_bwd_launch(p, stream));
  MMIF_LAUNCH("window_attention_bwd", window_attention_d_bias_launch(p, d_bias.data_ptr<float>(), stream));
  return {d_qkv, d_bias};
}

}  // namespace
}  // namespace mmif

// Of the current device. One kernel speaks for all: they are compiled for the same architectures.
TORCH_LIBRARY_FRAGMENT(mmif_trt, m) { m.def("cuda_code_loads() -> bool", &mmif::window_attention_loads); }

TORCH_LIBRARY_IMPL(mmif_trt, CUDA, m) {
  m.impl("window_attention", &mmif::window_attention);
  m.impl("window_attention_bwd", &mmif::window_attention_bwd);
}
