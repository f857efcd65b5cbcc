// Shared by the CPU and CUDA host parts of window attention: checks, and filling the params.
#pragma once
#include <ATen/core/Tensor.h>

#include <cmath>

#include "check.h"
#include "window_attention.h"

namespace mmif {

inline DType dtype_of(const char* op, const char* argument, const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kDouble:
      return DType::kDouble;
    case at::kHalf:
      return DType::kHalf;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      MMIF_CHECK(op, argument, x.scalar_type(), "float32, float64, float16, bfloat16", false);
  }
}

// lse, the bias and its gradient: as wide as the sums that the kernels keep.
inline at::ScalarType wide_type(const at::Tensor& qkv) {
  return qkv.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// The parameters that forward and backward share. bias_table must be contiguous on return, so it is passed by
// reference and may be replaced by a copy; so may qkv if its last dimension is strided.
inline WindowAttentionParams window_attention_params(at::Tensor& qkv, at::Tensor& bias_table, int64_t window,
                                                     int64_t shift) {
  constexpr const char* op = "window_attention";
  MMIF_CHECK(op, "qkv", qkv.sizes(), "[B, H, W, 3, heads, D] with D 16 or 32",
             qkv.dim() == 6 && qkv.size(3) == 3 && (qkv.size(5) == 16 || qkv.size(5) == 32));
  MMIF_CHECK(op, "window", window, "1 to 8", window >= 1 && window <= 8);
  MMIF_CHECK(op, "shift", shift, "0 to window - 1", shift >= 0 && shift < window);
  const int64_t heads = qkv.size(4), offsets = (2 * window - 1) * (2 * window - 1);
  MMIF_CHECK(op, "bias_table", bias_table.sizes(), "[(2 window - 1)^2, heads]",
             bias_table.dim() == 2 && bias_table.size(0) == offsets && bias_table.size(1) == heads);
  MMIF_CHECK(op, "bias_table", bias_table.scalar_type(), "float32, or float64 beside float64 qkv",
             bias_table.scalar_type() == wide_type(qkv));
  MMIF_CHECK(op, "bias_table", bias_table.device(), "the device of qkv", bias_table.device() == qkv.device());
  if (qkv.stride(5) != 1) qkv = qkv.contiguous();
  bias_table = bias_table.contiguous();

  WindowAttentionParams p{};
  p.dtype = dtype_of(op, "qkv", qkv);
  p.batch = qkv.size(0), p.height = qkv.size(1), p.width = qkv.size(2);
  p.heads = static_cast<int>(heads), p.head_dim = static_cast<int>(qkv.size(5));
  p.window = static_cast<int>(window), p.shift = static_cast<int>(shift);
  p.scale = 1 / std::sqrt(static_cast<double>(p.head_dim));
  p.qkv = qkv.const_data_ptr();
  for (int i = 0; i < 5; ++i) p.qkv_stride[i] = qkv.stride(i);
  p.bias_table = bias_table.const_data_ptr();
  return p;
}

// Adds what backward needs. Replaces d_out by a contiguous copy if its last dimension is strided (as in the
// expanded gradient of a sum).
inline void window_attention_add_gradient(WindowAttentionParams& p, at::Tensor& d_out, const at::Tensor& qkv,
                                          const at::Tensor& out, const at::Tensor& lse) {
  constexpr const char* op = "window_attention_bwd";
  const at::IntArrayRef shape = out.sizes();
  MMIF_CHECK(op, "out", shape, "[B, H, W, heads, D] of qkv, contiguous",
             out.is_contiguous() && shape.equals({p.batch, p.height, p.width, p.heads, p.head_dim}));
  MMIF_CHECK(op, "lse", lse.sizes(), "[B, heads, H, W] of qkv, contiguous",
             lse.is_contiguous() && lse.sizes().equals({p.batch, p.heads, p.height, p.width}) &&
                 lse.scalar_type() == wide_type(qkv));
  MMIF_CHECK(op, "d_out", d_out.sizes(), "the shape, type and device of out",
             d_out.sizes() == shape && d_out.scalar_type() == qkv.scalar_type() &&
                 d_out.device() == qkv.device() && out.scalar_type() == qkv.scalar_type());
  if (d_out.stride(4) != 1) d_out = d_out.contiguous();
  p.out = out.data_ptr();
  p.lse = lse.data_ptr();
  p.d_out = d_out.const_data_ptr();
  for (int i = 0; i < 4; ++i) p.d_out_stride[i] = d_out.stride(i);
}

}  // namespace mmif
