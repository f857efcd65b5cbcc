// LAGN's gate in plain types: the host part checks tensors and fills this, the kernels read it.
// mmif_trt/ops/reference.py says what is computed.
//
// Forward, at every pixel of two maps l and g with C channels:
//
//   z = Wl l + Wg g + b
//   s = sigmoid(z)                                saved for backward
//   y = s l + (1 - s) g
//
// Backward, from d_y:
//
//   d_z  = d_y (l - g) s (1 - s)
//   d_l  = d_y s       + Wl^T d_z
//   d_g  = d_y (1 - s) + Wg^T d_z
//   d_Wl = sum over pixels of d_z l^T
//   d_Wg = sum over pixels of d_z g^T
//   d_b  = sum over pixels of d_z
#pragma once
#include <cstdint>

#include "dtype.h"

namespace mmif {

// `wide`, the type of the sums, is double where the data is double, float elsewhere.
struct GatedMixParams {
  DType dtype;  // of the maps and their gradients
  int64_t pixels;
  int channels;  // C, a multiple of 16

  const void *local, *global;  // [N, C]
  // [C, C] wide, the product's output index last: transposed in forward, as passed in backward.
  const void *local_weight, *global_weight;
  const void* bias;  // [C] wide

  // Forward writes, backward reads.
  void* y;      // [N, C], forward only
  void* share;  // [N, C]: s

  // Backward only.
  const void* d_y;           // [N, C]
  void *d_local, *d_global;  // [N, C]
  void* partial;             // [chunks, 2 C^2 + C] wide, each written whole: d_Wl, d_Wg, d_b

  int64_t chunks;  // chunk c takes the pixels [c N / chunks, (c + 1) N / chunks)
};

}  // namespace mmif
