// The fusion loss, backward: d_f of one tile per block, in one pass over moments and choices.
//
// Traffic: moments, choices, f, a, b (wa, wb) are read once, the tiles' halos from L2; d_f is written once.
// The derivation, and the border of the transposed Sobel, are in ../fusion_loss.h.
#include "fusion_loss.cuh"

namespace mmif {
namespace {

constexpr int kMoments = 4;
constexpr int kRingWidth = kTileWidth + 2, kRingHeight = kTileHeight + 2;  // the tile and one pixel around it

struct BackwardTiles {
  Halo moments[kMoments];
  alignas(16) Columns means[kMoments];
  // w sign(f_x - t_x) and w sign(f_y - t_y), extended beyond the border for the transposed Sobel.
  float horizontal[kRingHeight][kRingWidth], vertical[kRingHeight][kRingWidth];
};

// Starts to load the moments. A pixel (y, x) takes G * m of the windows (y - 10 .. y, x - 10 .. x), by the
// place of their first pixel; there are none outside the image, so 0 stands there. Warps and lanes as in
// forward.
__device__ __forceinline__ void load_moments(BackwardTiles& tiles, const FusionLossParams& p,
                                             const Tile& tile) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int height = tile.height - kSsimWindow + 1, width = tile.width - kSsimWindow + 1;
  const int plane = height * width, x = tile.x + lane - kSsimWindow + 1;
  const bool in = x >= 0 && x < width, more_in = x + kWarp >= 0 && x + kWarp < width;
#pragma unroll
  for (int m = 0; m < kMoments; ++m) {
    const float* const moments =
        static_cast<const float*>(p.moments) + wide_product(tile.image * kMoments + m, plane);
    const float* const from = moments + clamped(x, width - 1);
    const float* const more = moments + clamped(x + kWarp, width - 1);
#pragma unroll
    for (int row = 0; row < kHaloHeight; row += kTileWarps) {
      const bool has = row + kTileWarps <= kHaloHeight || row + warp < kHaloHeight;
      const int y = tile.y + row + warp - kSsimWindow + 1, near = clamped(y, height - 1);
      float* const to = &tiles.moments[m][0][0] + (row + warp) * kPitch + lane;
      copy_4_bytes(to, below(from, near, width), in && y == near, has);
      copy_4_bytes(to + kWarp, below(more, near, width), more_in && y == near,
                   has && lane < kHaloWidth - kWarp);
    }
  }
}

__device__ __forceinline__ float signed_weight(int choices, int up, int down, float weight) {
  return choices & up ? weight : choices & down ? -weight : 0.f;
}

// Outside the image, the border is used, negated along the axis of the difference.
template <bool weighted>
__device__ __forceinline__ void load_sign(BackwardTiles& tiles, const FusionLossParams& p, const Tile& tile,
                                          int row, int column) {
  const int y = clamped(tile.y + row - 1, tile.height - 1), x = clamped(tile.x + column - 1, tile.width - 1);
  const int choices = p.choices[tile.place(y, x)];
  const float weight = choices & kGradientFromB ? weight_at<weighted>(p.wb, tile.image, y, x)
                                                : weight_at<weighted>(p.wa, tile.image, y, x);
  const float horizontal = signed_weight(choices, kHorizontalUp, kHorizontalDown, weight);
  const float vertical = signed_weight(choices, kVerticalUp, kVerticalDown, weight);
  tiles.horizontal[row][column] = x == tile.x + column - 1 ? horizontal : -horizontal;
  tiles.vertical[row][column] = y == tile.y + row - 1 ? vertical : -vertical;
}

// A warp takes every eighth row; the first threads of the block take the columns beyond 32.
template <bool weighted>
__device__ __forceinline__ void load_signs(BackwardTiles& tiles, const FusionLossParams& p,
                                           const Tile& tile) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, thread = threadIdx.x;
#pragma unroll
  for (int row = 0; row < kRingHeight; row += kTileWarps)
    if (row + kTileWarps <= kRingHeight || row + warp < kRingHeight)
      load_sign<weighted>(tiles, p, tile, row + warp, lane);
  if (thread < 2 * kRingHeight) load_sign<weighted>(tiles, p, tile, thread / 2, kWarp + thread % 2);
}

__device__ __forceinline__ void mean_rows(BackwardTiles& tiles, const Constants& constants) {
  for (int task = threadIdx.x; task < kHaloHeight * kGroups; task += kTileThreads) {
    const int row = task / kGroups, column = task % kGroups * kRun;
#pragma unroll
    for (int m = 0; m < kMoments; ++m) {
      float mean[kRun] = {};
#pragma unroll
      for (int k = 0; k < kSsimWindow + kRun - 1; ++k)
        add_to_run(mean, k, tiles.moments[m][row][column + k], constants);
      *reinterpret_cast<float4*>(&tiles.means[m][row][column]) =
          make_float4(mean[0], mean[1], mean[2], mean[3]);
    }
  }
}

// The transposed Sobel of both sign maps, at a place of the ring.
__device__ __forceinline__ float transposed_sobel(const BackwardTiles& tiles, int row, int column) {
  float sum = 0;
#pragma unroll
  for (int i = -1; i <= 1; ++i) {
    const float smooth = i == 0 ? 2.f : 1.f;
    sum += smooth * (tiles.horizontal[row + i][column - 1] - tiles.horizontal[row + i][column + 1]);
    sum += smooth * (tiles.vertical[row - 1][column + i] - tiles.vertical[row + 1][column + i]);
  }
  return sum;
}

// d_terms of the image, each divided by the number of its pixels.
struct Factors {
  float intensity, gradient, structure;

  __device__ __forceinline__ Factors(const FusionLossParams& p, const Constants& by, int image) {
    const float* const d_terms = static_cast<const float*>(p.d_terms) + 3 * image;
    intensity = d_terms[0] * by.per_pixel, gradient = d_terms[1] * by.per_pixel;
    structure = d_terms[2] * by.per_window;
  }
};

template <bool weighted>
__global__ void __launch_bounds__(kTileThreads, 3)
    fusion_loss_bwd_kernel(const FusionLossParams p, const Constants constants) {
  MMIF_SHARED_DYNAMIC(BackwardTiles, tiles);
  const Tile tile(p);
  load_moments(tiles, p, tile);
  load_signs<weighted>(tiles, p, tile);
  wait_copies();
  __syncthreads();  // the moments and the signs are complete
  mean_rows(tiles, constants);
  __syncthreads();  // the means are complete

  const int column = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kRun, x = tile.x + column;
  float mean[kMoments][kRun] = {};
#pragma unroll
  for (int k = 0; k < kSsimWindow + kRun - 1; ++k)
#pragma unroll
    for (int m = 0; m < kMoments; ++m) add_to_run(mean[m], k, tiles.means[m][first + k][column], constants);

  float sobel[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) sobel[i] = transposed_sobel(tiles, first + i + 1, column + 1);

  const Factors by(p, constants, tile.image);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int y = tile.y + first + i;
    if (x >= tile.width || y >= tile.height) continue;
    const float structure = mean[0][i] + 2 * at(p.f, tile.image, y, x) * mean[1][i] +
                            at(p.a, tile.image, y, x) * mean[2][i] + at(p.b, tile.image, y, x) * mean[3][i];
    const int choices = p.choices[tile.place(y, x)];
    const float weight = choices & kIntensityFromB ? weight_at<weighted>(p.wb, tile.image, y, x)
                                                   : weight_at<weighted>(p.wa, tile.image, y, x);
    const float intensity = signed_weight(choices, kIntensityUp, kIntensityDown, weight);
    static_cast<float*>(p.d_f)[tile.place(y, x)] =
        by.intensity * intensity + by.gradient * sobel[i] + by.structure * structure;
  }
}

}  // namespace

cudaError_t fusion_loss_bwd_launch(const FusionLossParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (!launchable(p)) return cudaErrorInvalidValue;
  const auto kernel = p.wa.data == nullptr ? fusion_loss_bwd_kernel<false> : fusion_loss_bwd_kernel<true>;
  return launch(kernel, tile_grid(p), dim3(kTileThreads), sizeof(BackwardTiles), stream, p, Constants(p));
}

}  // namespace mmif
