// The two pointwise layers that end both of LAGN's blocks, in plain types; local_block.h and mlp_block.h add
// what precedes them.
//
// Forward, at every pixel (or token), from t with C channels, through E hidden ones:
//
//   u = W1 t + b1
//   h = a(u)                                      u Phi(u), GELU, or u clamp(u + 3, 0, 6) / 6, hard swish
//   W2 h + b2                                     the result
//
// Forward saves only u; recomputing t and h is cheaper than reading them back. Backward, from d_y and u, with
// Phi and phi the normal distribution and its density:
//
//   d_h = W2^T d_y           d_W2 = sum over pixels of d_y h^T     d_b2 = sum of d_y
//   d_u = d_h a'(u)          a' = Phi(u) + u phi(u), or 0 up to -3, 1 from 3 and (2 u + 3) / 6 between
//   d_t = W1^T d_u           d_W1 = sum over pixels of d_u t^T     d_b1 = sum of d_u
#pragma once
#include <cstdint>

#include "dtype.h"

namespace mmif {

enum class Activation { kGelu, kHardswish };

// `wide`, the type of the sums, is double where the data is double, float elsewhere. Matrices are stored as
// the products need them, the output's index last: transposed in forward, as passed in backward.
struct PointwiseParams {
  int channels, hidden;  // C and E, multiples of 16
  Activation activation;
  const void* expand;       // [C, E] wide: W1 transposed; backward: W1
  const void* expand_bias;  // [E] wide
  const void* reduce;       // [E, C] wide: W2 transposed; backward: W2
  const void* reduce_bias;  // [C] wide
};

// Places of the gradients in a chunk's row of sums, after `first` sums for what precedes the layers: d_W1 as
// [C, E], d_b1, d_W2 as [E, C], d_b2; then the end.
struct PointwiseOffsets {
  int64_t expand, expand_bias, reduce, reduce_bias, end;
};

constexpr PointwiseOffsets pointwise_offsets(int64_t first, int64_t C, int64_t E) {
  return {first, first + C * E, first + C * E + E, first + 2 * C * E + E, first + 2 * C * E + E + C};
}

}  // namespace mmif
