// The fusion loss, backward: d_f of one tile per block, in one pass over moments and choices.
//
// Traffic: moments, choices, f, a, b (wa, wb) are read once, the tiles' halos from L2; d_f is written once.
// The derivation, and the border of the transposed Sobel, are in ../fusion_loss.h.
#include "fusion_loss.cuh"

namespace mmif {
namespace {

constexpr int kMoments = 4;
constexpr int kMomentsPitch = kHaloWidth + 1;  // odd: eight lanes with a row each meet all banks
static_assert(kMomentsPitch % 2 == 1, "no bank conflicts along x");
// Signs of the tile and one pixel around it, from kLeft columns before it: four choices are read as a word.
constexpr int kLeft = 4, kWords = (kLeft + kTileWidth + kLeft) / 4;

struct alignas(16) BackwardTiles {
  float4 moments[kHaloHeight][kMomentsPitch];  // of one pixel side by side
  // First the signs, then, when they are used, the moments' means along x.
  union {
    struct {
      // w sign(f_x - t_x) and w sign(f_y - t_y); beyond the upper and lower border the latter's negative.
      float horizontal[kTileHeight + 2][4 * kWords], vertical[kTileHeight + 2][4 * kWords];
    } signs;
    Means means;
  };
};

// Starts to load the moments. A pixel (y, x) takes G * m of the windows (y - 10 .. y, x - 10 .. x), by the
// place of their first pixel; there are none outside the image, so 0 stands there. A thread takes one column
// of every sixth row.
__device__ __forceinline__ void load_moments(BackwardTiles& tiles, const FusionLossParams& p,
                                             const Tile& tile) {
  constexpr int kAtOnce = kTileThreads / kHaloWidth;
  const int first = threadIdx.x / kHaloWidth, column = threadIdx.x % kHaloWidth;
  const int height = tile.height - kAround, width = tile.width - kAround, x = tile.x + column - kAround;
  const bool in = x >= 0 && x < width;
  const float4* const from = kept(static_cast<const float4*>(p.moments) +
                                  wide_product(tile.image * height, width) + clamped(x, width - 1));
  const int row_bytes = renewed(width * static_cast<int>(sizeof(float4)));
  float4* const to = &tiles.moments[0][0] + first * kMomentsPitch + column;
#pragma unroll
  for (int row = 0; row < kHaloHeight; row += kAtOnce) {
    const int y = tile.y + row + first - kAround, near = clamped(y, height - 1);
    copy_bytes<16>(to + row * kMomentsPitch,
                   reinterpret_cast<const char*>(from) + wide_product(near, row_bytes), in && y == near,
                   first < kAtOnce && (row + kAtOnce <= kHaloHeight || row + first < kHaloHeight));
  }
}

__device__ __forceinline__ float signed_weight(unsigned choices, int up, int down, float weight) {
  return choices & up ? weight : choices & down ? -weight : 0.f;
}

// The signs of kCount neighbours whose choices are the bytes of `choices`.
template <bool weighted, int kCount>
__device__ __forceinline__ void put_signs(BackwardTiles& tiles, const FusionLossParams& p, const Tile& tile,
                                          int row, int column, int y, int x, unsigned choices) {
  float horizontal[kCount], vertical[kCount];
  const float out = y == tile.y + row - 1 ? 1.f : -1.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const unsigned mine = choices >> 8 * i;
    const float weight = mine & kGradientFromB ? weight_at<weighted>(p.wb, tile.image, y, x + i)
                                               : weight_at<weighted>(p.wa, tile.image, y, x + i);
    horizontal[i] = signed_weight(mine, kHorizontalUp, kHorizontalDown, weight);
    vertical[i] = signed_weight(mine, kVerticalUp, kVerticalDown, weight * out);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    tiles.signs.horizontal[row][column + i] = horizontal[i];
    tiles.signs.vertical[row][column + i] = vertical[i];
  }
}

// By words where rows are whole words, a thread one of every 25th row.
template <bool weighted>
__device__ __forceinline__ void load_signs(BackwardTiles& tiles, const FusionLossParams& p,
                                           const Constants& constants, const Tile& tile) {
  constexpr int kRows = kTileHeight + 2;
  if (constants.vectors) {
    constexpr int kAtOnce = kTileThreads / kWords;
    const int first = threadIdx.x / kWords, column = threadIdx.x % kWords * 4, x = tile.x + column - kLeft;
    if (first >= kAtOnce || x < 0 || x >= tile.width) return;
#pragma unroll
    for (int row = 0; row < kRows; row += kAtOnce) {
      if (row + kAtOnce > kRows && row + first >= kRows) continue;
      const int y = clamped(tile.y + row + first - 1, tile.height - 1);
      const unsigned word = *reinterpret_cast<const unsigned*>(p.choices + tile.place(y, x));
      put_signs<weighted, 4>(tiles, p, tile, row + first, column, y, x, word);
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * (kTileWidth + 2); i += kTileThreads) {
    const int row = i / (kTileWidth + 2), column = i % (kTileWidth + 2) + kLeft - 1;
    const int y = clamped(tile.y + row - 1, tile.height - 1);
    const int x = clamped(tile.x + column - kLeft, tile.width - 1);
    put_signs<weighted, 1>(tiles, p, tile, row, column, y, x, p.choices[tile.place(y, x)]);
  }
}

// The transposed Sobel of both sign maps at the thread's pixels. Beyond the left and right border stands the
// border, negated along the axis of the difference.
__device__ __forceinline__ void transposed_sobel(float (&sobel)[kRun], const BackwardTiles& tiles,
                                                 const Tile& tile) {
  const int column = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kRun, x = tile.x + column;
  const bool has_left = x > 0, has_right = x < tile.width - 1;
  const int middle = column + kLeft, left = middle - has_left, right = middle + has_right;
  const float by_left = has_left ? 1.f : -1.f, by_right = has_right ? -1.f : 1.f;
  float across[3], smooth[3];  // of three rows: horizontal's difference; vertical's sum
#pragma unroll
  for (int i = 0; i < kRun + 2; ++i) {
    const float *const horizontal = tiles.signs.horizontal[first + i], *const vertical =
                                                                           tiles.signs.vertical[first + i];
    across[i % 3] = by_left * horizontal[left] + by_right * horizontal[right];
    smooth[i % 3] = vertical[left] + vertical[right] + 2 * vertical[middle];
    if (i < 2) continue;
    const int above = (i + 1) % 3, here = (i + 2) % 3, below = i % 3;
    sobel[i - 2] = across[above] + across[below] + 2 * across[here] + (smooth[above] - smooth[below]);
  }
}

__device__ __forceinline__ void mean_rows(BackwardTiles& tiles, const Constants& constants) {
  for (int task = threadIdx.x; task < kTasks; task += kTileThreads) {
    const int row = task % kHaloHeight, column = task / kHaloHeight * kAcross;
    float mean[kMoments][kAcross] = {};
#pragma unroll
    for (int k = 0; k < kAcross + kAround; ++k) {
      const float4 values = tiles.moments[row][column + k];
#pragma unroll
      for (int m = 0; m < kMoments; ++m) add_to_run(mean[m], k, part(values, m), constants);
    }
    store_means(&tiles.means[row][column], mean);
  }
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
__global__ void __launch_bounds__(kTileThreads, weighted ? 2 : 3)
    fusion_loss_bwd_kernel(const FusionLossParams p, const Constants constants) {
  MMIF_SHARED_DYNAMIC(BackwardTiles, tiles);
  const Tile tile(p);
  load_moments(tiles, p, tile);
  load_signs<weighted>(tiles, p, constants, tile);
  __syncthreads();  // the signs are complete
  float sobel[kRun];
  transposed_sobel(sobel, tiles, tile);
  wait_copies();
  __syncthreads();  // the moments are complete, the signs are used
  mean_rows(tiles, constants);
  __syncthreads();  // the means are complete
  float mean[kMoments][kRun];
  mean_columns<0, kMoments>(mean, tiles.means, constants);

  const int thread = renewed_thread();
  const int x = tile.x + thread % kWarp, top = tile.y + thread / kWarp * kRun;
  const int rows = x < tile.width ? tile.height - top : 0;  // of the run in the image
  const Factors by(p, constants, tile.image);
  const float *const f = of_pixel(p.f, tile.image, top, x), *const a = of_pixel(p.a, tile.image, top, x);
  const float* const b = of_pixel(p.b, tile.image, top, x);
  const int f_row = renewed(static_cast<int>(p.f.row_stride)),
            a_row = renewed(static_cast<int>(p.a.row_stride));
  const int b_row = renewed(static_cast<int>(p.b.row_stride));
  const int64_t first = tile.place(top, x);
  const uint8_t* const choices = p.choices + first;
  float* const d_f = static_cast<float*>(p.d_f) + first;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i >= rows) break;
    const float structure = mean[0][i] + 2 * *below(f, i, f_row) * mean[1][i] +
                            *below(a, i, a_row) * mean[2][i] + *below(b, i, b_row) * mean[3][i];
    const unsigned mine = *(choices + wide_product(tile.width, i));
    const float weight = mine & kIntensityFromB ? weight_at<weighted>(p.wb, tile.image, top + i, x)
                                                : weight_at<weighted>(p.wa, tile.image, top + i, x);
    const float intensity = signed_weight(mine, kIntensityUp, kIntensityDown, weight);
    *(d_f + wide_product(tile.width, i)) =
        by.intensity * intensity + by.gradient * sobel[i] + by.structure * structure;
  }
}

}  // namespace

cudaError_t fusion_loss_bwd_launch(const FusionLossParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (!launchable(p) || reinterpret_cast<uintptr_t>(p.moments) % sizeof(float4)) return cudaErrorInvalidValue;
  const Constants constants(p, p.width % 4 == 0 && reinterpret_cast<uintptr_t>(p.choices) % 4 == 0);
  const auto kernel = p.wa.data == nullptr ? fusion_loss_bwd_kernel<false> : fusion_loss_bwd_kernel<true>;
  return launch(kernel, tile_grid(p), dim3(kTileThreads), sizeof(BackwardTiles), stream, p, constants);
}

}  // namespace mmif
