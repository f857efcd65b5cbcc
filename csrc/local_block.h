// LAGN's local block in plain types: the host part checks tensors and fills this, the kernels read it.
// mmif_trt/ops/reference.py says what is computed.
//
// Forward, at every pixel, with C channels and E hidden ones:
//
//   t = depthwise 3x3 of x (0 beyond the border)   u = W1 t + b1   h = gelu(u)   y = x + W2 h + b2
//
// u is all that forward saves; t and h are cheap beside reading them back. Backward, from d_y and u, with
// Phi and phi the normal distribution and its density:
//
//   d_h = W2^T d_y           d_W2 = sum over pixels of d_y h^T     d_b2 = sum of d_y
//   d_u = d_h (Phi(u) + u phi(u))
//   d_t = W1^T d_u           d_W1 = sum over pixels of d_u t^T     d_b1 = sum of d_u
//   d_x = d_y + depthwise of d_t by the kernel turned by 180 degrees
//   d_depthwise(dy, dx) = sum over pixels p of d_t(p) x(p + (dy, dx))    its bias: sum of d_t
//
// The last two need d_t of neighbouring rows, so they are a second pass, after d_t of the whole batch.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace mmif {

constexpr int kTaps = 9;  // of the depthwise convolution, row by row

// Channels are contiguous in every image. `wide` is double where the data is double, float elsewhere: what
// accumulates. Matrices lie as products want them, the output's index last.
struct LocalBlockParams {
  DType dtype;  // of x, y, u and their gradients
  int64_t batch, height, width;
  int channels, hidden;  // C and E, multiples of 16

  const void* x;               // [B, H, W, C]
  const void* depthwise;       // [9, C] wide
  const void* depthwise_bias;  // [C] wide
  const void* expand;          // [C, E] wide: W1 transposed
  const void* expand_bias;     // [E] wide
  const void* reduce;          // [E, C] wide: W2 transposed
  const void* reduce_bias;     // [C] wide

  // Forward writes, backward reads.
  void* y;  // [B, H, W, C], forward only
  void* u;  // [B, H, W, E]

  // Backward only.
  const void* d_y;         // [B, H, W, C]
  const void* expand_t;    // [E, C] wide: W1
  const void* reduce_t;    // [C, E] wide: W2
  void* d_t;               // [B, H, W, C] wide, scratch between the passes
  void* d_x;               // [B, H, W, C]
  void* d_weight_partial;  // [chunks, local_block_weights()] wide, each written whole; summed over chunks later

  int64_t chunks;  // chunk c takes the rows [c B H / chunks, (c + 1) B H / chunks) of all images' rows
};

// Where each parameter's gradient lies in a row of d_weight_partial, in the order and shapes of the params
// struct: depthwise and its bias, expand and its bias, reduce and its bias; the end.
struct LocalBlockOffsets {
  int64_t depthwise, depthwise_bias, expand, expand_bias, reduce, reduce_bias, end;
};

constexpr LocalBlockOffsets local_block_offsets(int64_t C, int64_t E) {
  const int64_t bias = kTaps * C, expand = bias + C, expand_bias = expand + C * E, reduce = expand_bias + E;
  return {0, bias, expand, expand_bias, reduce, reduce + E * C, reduce + E * C + C};
}

}  // namespace mmif
