// The fusion loss on CUDA: what its kernels share. Both cut an image into tiles of kTileWidth x kTileHeight
// pixels, one per block, and keep the tile and the surroundings it needs in shared memory.
//
// Who computes what. A Gaussian mean is taken along x, then along y. Along x a thread computes four
// neighbours of one row from fourteen values; along y, four neighbours of one column, also from fourteen, and
// these are the four pixels whose result it writes: lane = column, warp = four rows. Reads of shared memory
// bound such kernels; here each value read serves up to four sums.
#pragma once
#include "fusion_loss_launch.h"
#include "mma.cuh"

namespace mmif {

constexpr int kTileThreads = 256, kTileWarps = kTileThreads / kWarp;
constexpr int kRun = 4;                                     // pixels of a thread, one above the other
constexpr int kHaloWidth = kTileWidth + kSsimWindow - 1;    // 42
constexpr int kHaloHeight = kTileHeight + kSsimWindow - 1;  // 42
// A thread reads from column 4 g, row r: with an odd pitch, a warp of eight g and four r meets 32 banks.
constexpr int kPitch = kHaloWidth + 1;
constexpr int kGroups = kTileWidth / kRun;
static_assert(kTileWidth == kWarp && kTileHeight == kRun * kTileThreads / kWarp,
              "lane = column, warp = rows");
static_assert(kPitch % 2 == 1 && kGroups == 8, "no bank conflicts along x");

using Halo = float[kHaloHeight][kPitch];
using Columns = float[kHaloHeight][kTileWidth];  // means along x, at every row of the halo

struct Constants {  // a kernel's argument: FMAs read them in place, from constant memory
  float gaussian[kSsimWindow];
  float c1, c2;
  float per_pixel, per_window;  // 1 over the numbers of an image's pixels and whole windows

  explicit Constants(const FusionLossParams& p)
      : c1(static_cast<float>(p.c1)),
        c2(static_cast<float>(p.c2)),
        per_pixel(static_cast<float>(1. / static_cast<double>(p.height * p.width))),
        per_window(static_cast<float>(
            1. / static_cast<double>((p.height - kSsimWindow + 1) * (p.width - kSsimWindow + 1)))) {
    for (int k = 0; k < kSsimWindow; ++k) gaussian[k] = static_cast<float>(p.gaussian[k]);
  }
};

// The block's place: image of the batch, first pixel of the tile. The grid is tiles across, down, images.
struct Tile {
  int image, x, y, height, width;  // height and width are the image's

  __device__ __forceinline__ explicit Tile(const FusionLossParams& p)
      : image(blockIdx.z),
        x(blockIdx.x * kTileWidth),
        y(blockIdx.y * kTileHeight),
        height(static_cast<int>(p.height)),
        width(static_cast<int>(p.width)) {}
  // Of a pixel in an array of [B, H, W].
  __device__ __forceinline__ int64_t place(int y_, int x_) const {
    return wide_product(image * height + y_, width) + x_;
  }
};

__device__ __forceinline__ const float* plane(const FusionLossImage& image, int64_t batch) {
  return static_cast<const float*>(image.data) + batch * image.batch_stride;
}

// The pixel in row y of the same column as one in row 0. The row stride is in bytes, which saves a 64-bit
// shift.
__device__ __forceinline__ const float* below(const float* pixel, int y, int row_elements) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(pixel) +
                                        wide_product(y, row_elements * static_cast<int>(sizeof(float))));
}
__device__ __forceinline__ float at(const FusionLossImage& image, int batch, int y, int x) {
  return *below(plane(image, batch) + x, y, static_cast<int>(image.row_stride));
}

// The source's weight at the address of a pixel; 1 in a kernel without weights.
template <bool weighted>
__device__ __forceinline__ float weight_at(const FusionLossImage& weights, int batch, int y, int x) {
  return weighted ? at(weights, batch, y, x) : 1.f;
}

// Adds value k of fourteen in a row to those of the four means that include it. k is a constant once
// unrolled.
__device__ __forceinline__ void add_to_run(float (&sum)[kRun], int k, float value,
                                           const Constants& constants) {
#pragma unroll
  for (int i = 0; i < kRun; ++i)
    if (k >= i && k - i < kSsimWindow) sum[i] = fmaf(constants.gaussian[k - i], value, sum[i]);
}

inline dim3 tile_grid(const FusionLossParams& p) {
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(p.width, kTileWidth)),
              static_cast<unsigned>(ceil_div<int64_t>(p.height, kTileHeight)),
              static_cast<unsigned>(p.batch));
}

// Whether a launch is supported: float32, and counts that fit its 32-bit numbers.
inline bool launchable(const FusionLossParams& p) {
  constexpr int64_t most = 0x7fffffff;
  for (const FusionLossImage* image : {&p.f, &p.a, &p.b, &p.wa, &p.wb})
    if (image->row_stride > most / 8) return false;
  return p.dtype == DType::kFloat && p.chunks == fusion_loss_chunks(p.height, p.width) &&
         p.height >= kSsimWindow && p.width >= kSsimWindow && p.height <= 65535 * kTileHeight &&
         p.width <= most / 8 && p.height * p.width <= most && p.batch * p.height <= most && p.batch <= 65535;
}

}  // namespace mmif
