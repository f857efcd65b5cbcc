// The host part of window attention on the CPU: outputs, threads, and the final sum of d_bias.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../window_attention_host.h"
#include "dispatch.h"

MMIF_DECLARE(window_attention_fwd, const WindowAttentionParams& p, int64_t chunk)
MMIF_DECLARE(window_attention_set_chunks, WindowAttentionParams& p, int64_t most)
MMIF_DECLARE(window_attention_bwd, const WindowAttentionParams& p, int64_t chunk)

namespace mmif {
namespace {

// Chunks do not depend on the number of threads, so neither does any bit of the result.
constexpr int64_t kChunks = 32;

std::tuple<at::Tensor, at::Tensor> window_attention(const at::Tensor& qkv_in, const at::Tensor& bias_in,
                                                    int64_t window, int64_t shift) {
  at::Tensor qkv = qkv_in, bias = bias_in;
  WindowAttentionParams p = window_attention_params(qkv, bias, window, shift);
  const at::Tensor out = at::empty({p.batch, p.height, p.width, p.heads, p.head_dim}, qkv.options());
  const at::Tensor lse =
      at::empty({p.batch, p.heads, p.height, p.width}, qkv.options().dtype(wide_type(qkv)));
  if (out.numel() == 0) return {out, lse};
  p.out = out.data_ptr();
  p.lse = lse.data_ptr();
  MMIF_DISPATCH(window_attention_set_chunks, p, kChunks);
  at::parallel_for(0, p.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) MMIF_DISPATCH(window_attention_fwd, p, chunk);
  });
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor> window_attention_bwd(const at::Tensor& d_out_in, const at::Tensor& qkv_in,
                                                        const at::Tensor& bias_in, const at::Tensor& out,
                                                        const at::Tensor& lse, int64_t window,
                                                        int64_t shift) {
  at::Tensor d_out = d_out_in, qkv = qkv_in, bias = bias_in;
  WindowAttentionParams p = window_attention_params(qkv, bias, window, shift);
  window_attention_add_gradient(p, d_out, qkv, out, lse);
  const at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
  if (out.numel() == 0) return {d_qkv, at::zeros(bias.sizes(), bias.options())};
  MMIF_DISPATCH(window_attention_set_chunks, p, kChunks);
  const at::Tensor partial = at::empty({p.chunks, p.heads, bias.size(0)}, bias.options());
  p.d_qkv = d_qkv.data_ptr();
  p.d_bias_partial = partial.data_ptr();
  at::parallel_for(0, p.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) MMIF_DISPATCH(window_attention_bwd, p, chunk);
  });
  return {d_qkv, partial.sum(0).t().contiguous()};
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CPU, m) {
  m.impl("window_attention", &mmif::window_attention);
  m.impl("window_attention_bwd", &mmif::window_attention_bwd);
}
