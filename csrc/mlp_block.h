// The second half of LAGN's global block in plain types: the host part checks tensors and fills this, the
// kernels read it. mmif_trt/ops/reference.py says what is computed.
//
// Forward, at every token, mean and variance over its C channels:
//
//   rstd = (variance + eps)^-1/2
//   z    = (x - mean) rstd
//   t    = z weight + bias
//   y    = x + layers(t)                          the layers of pointwise.h
//
// Backward, from d_y and the layers' d_t, with g = d_t weight:
//
//   d_x      = d_y + rstd (g - mean(g) - z mean(g z))
//   d_weight = sum over tokens of d_t z
//   d_bias   = sum over tokens of d_t
#pragma once
#include "pointwise.h"

namespace mmif {

struct MlpBlockParams {
  DType dtype;  // of x, y, u and their gradients
  int64_t tokens;
  double eps;
  PointwiseParams layers;

  const void* x;            // [N, C]
  const void* norm_weight;  // [C] wide
  const void* norm_bias;    // [C] wide

  // Forward writes, backward reads.
  void* y;  // [N, C], forward only
  void* u;  // [N, E]

  // Backward only.
  const void* d_y;  // [N, C]
  void* d_x;        // [N, C]
  void* partial;  // [chunks, sums] wide, each written whole, summed over chunks later: d_weight, d_bias, then
                  // those of the layers

  int64_t chunks;  // chunk c takes the tokens [c N / chunks, (c + 1) N / chunks)
};

constexpr PointwiseOffsets mlp_block_offsets(int64_t C, int64_t E) { return pointwise_offsets(2 * C, C, E); }

}  // namespace mmif
