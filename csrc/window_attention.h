// Window attention in plain types: the host parts check tensors and fill this, the kernels read it.
// mmif_trt/ops/reference.py says what is computed.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace mmif {

// Strides are in elements. D, the head dimension, is contiguous everywhere. `wide`, the type of the sums, is
// double where the data is double, float elsewhere.
struct WindowAttentionParams {
  DType dtype;  // of qkv, out and their gradients
  int64_t batch, height, width;
  int heads, head_dim;  // D is 16 or 32
  int window, shift;    // 0 <= shift < window
  double scale;         // D^-1/2

  const void* qkv;         // [B, H, W, 3, heads, D]
  int64_t qkv_stride[5];   // of B, H, W, 3, heads
  const void* bias_table;  // [(2 window - 1)^2, heads] contiguous, wide

  // Forward writes, backward reads.
  void* out;  // [B, H, W, heads, D] contiguous
  void* lse;  // [B, heads, H, W] contiguous, wide: natural log of the softmax's denominator

  int64_t chunks;  // runs of windows whose lengths differ by at most one; a thread or block takes one

  // Backward only.
  const void* d_out;        // [B, H, W, heads, D]
  int64_t d_out_stride[4];  // of B, H, W, heads
  void* d_qkv;              // [B, H, W, 3, heads, D] contiguous
  void* d_bias_partial;     // [chunks, heads, (2 window - 1)^2] wide, written whole; summed over chunks later
};

}  // namespace mmif
