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

// Blocks of a launch over all heads. More windows make a block's chunk longer. In forward a block per window is
// the fastest on an H200 but for float32, whose eight small blocks per multiprocessor take several each. In
// backward what a block does once, its table of d_bias above all, is shared by the windows of its chunk; one wave
// of four blocks per multiprocessor is the fastest there. Constants, not properties of the card, so that every
// card sums d_bias in the same order.
constexpr int64_t kForwardFloatBlocks = 1024, kBackwardBlocks = 512, kBackwardFloatBlocks = 768;
constexpr int64_t kMostChunks = 65535;  // of a launch's grid

int64_t chunks(const WindowAttentionParams& p, int64_t blocks) {
  return std::min({(blocks + p.heads - 1) / p.heads, window_count(p), kMostChunks});
}

// x, or a copy of it whose rows begin at multiples of 16 bytes, as the kernels need. Tensors that torch
// allocates are aligned so; views of them may not be.
at::Tensor with_aligned_rows(const at::Tensor& x) {
  const int64_t vector = 16 / x.element_size();
  bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) aligned &= x.stride(i) % vector == 0;
  return aligned ? x : x.clone(at::MemoryFormat::Contiguous);
}

WindowAttentionParams params(at::Tensor& qkv, at::Tensor& bias, int64_t window, int64_t shift) {
  qkv = with_aligned_rows(qkv);
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
  p.chunks =
      p.dtype == DType::kFloat ? chunks(p, kForwardFloatBlocks) : std::min(window_count(p), kMostChunks);
  MMIF_LAUNCH("window_attention", window_attention_fwd_launch(p, c10::cuda::getCurrentCUDAStream()));
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor> window_attention_bwd(const at::Tensor& d_out_in, const at::Tensor& qkv_in,
                                                        const at::Tensor& bias_in, const at::Tensor& out_in,
                                                        const at::Tensor& lse, int64_t window,
                                                        int64_t shift) {
  const c10::cuda::CUDAGuard guard(qkv_in.device());
  at::Tensor d_out = with_aligned_rows(d_out_in), qkv = qkv_in, bias = bias_in;
  const at::Tensor out = out_in.is_contiguous() ? with_aligned_rows(out_in) : out_in;  // refused below
  WindowAttentionParams p = params(qkv, bias, window, shift);
  window_attention_add_gradient(p, d_out, qkv, out, lse);
  const at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
  if (out.numel() == 0) return {d_qkv, at::zeros(bias.sizes(), bias.options())};
  p.chunks = chunks(p, p.dtype == DType::kFloat ? kBackwardFloatBlocks : kBackwardBlocks);
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

// For the current device. One kernel stands for all: they are compiled for the same architectures.
TORCH_LIBRARY_FRAGMENT(mmif_trt, m) { m.def("cuda_code_loads() -> bool", &mmif::window_attention_loads); }

TORCH_LIBRARY_IMPL(mmif_trt, CUDA, m) {
  m.impl("window_attention", &mmif::window_attention);
  m.impl("window_attention_bwd", &mmif::window_attention_bwd);
}
