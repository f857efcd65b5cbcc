// LAGN's local block in plain types: the host part checks tensors and fills this, the kernels read it.
// mmif_trt/ops/reference.py says what is computed.
//
// Forward: t = depthwise 3x3 of x (0 beyond the border), then the layers of pointwise.h, y = x + their
// result. Backward, once d_t of the whole batch is known, since neighbouring rows are needed:
//
//   d_x = d_y + depthwise of d_t with the kernel rotated by 180 degrees
//   d_depthwise(dy, dx) = sum over pixels p of d_t(p) x(p + (dy, dx))      its bias: sum of d_t
#pragma once
#include "pointwise.h"

namespace mmif {

constexpr int kTaps = 9;  // of the depthwise convolution, row by row

// Channels are contiguous in every image.
struct LocalBlockParams {
  DType dtype;  // of x, y, u and their gradients
  int64_t batch, height, width;
  PointwiseParams layers;

  const void* x;               // [B, H, W, C]
  const void* depthwise;       // [9, C] wide
  const void* depthwise_bias;  // [C] wide

  // Forward writes, backward reads.
  void* y;  // [B, H, W, C], forward only
  void* u;  // [B, H, W, E]

  // Backward only.
  const void* d_y;  // [B, H, W, C]
  void* d_t;        // [B, H, W, C] wide, scratch between the passes
  void* d_x;        // [B, H, W, C]
  void* partial;  // [chunks, sums] wide, each written whole, summed over chunks later: d_depthwise as [9, C],
                  // its bias, then those of the layers

  int64_t chunks;  // chunk c takes the rows [c B H / chunks, (c + 1) B H / chunks) of all images' rows
};

constexpr PointwiseOffsets local_block_offsets(int64_t C, int64_t E) {
  return pointwise_offsets((kTaps + 1) * C, C, E);
}

}  // namespace mmif
