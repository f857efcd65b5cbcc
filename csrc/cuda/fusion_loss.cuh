// The fusion loss on CUDA: what its kernels share. Both cut an image into tiles of kTileWidth x kTileHeight
// pixels, one per block, and keep the tile and the surroundings it needs in shared memory.
//
// Who computes what. A Gaussian mean is taken along x, then along y. Along x a thread computes eight neighbours
// of one row from eighteen values, read as vectors; along y, four neighbours of one column, and these are the
// four pixels whose result it writes: lane = column, warp = four rows. Taller tiles and more pixels per thread
// take fewer instructions, half of what one pixel took at first, but leave fewer warps to wait for each other:
// on an H200 they were no faster at 512 px, and slower below.
#pragma once
#include "fusion_loss_launch.h"
#include "mma.cuh"

namespace mmif {

constexpr int kTileThreads = 256, kTileWarps = kTileThreads / kWarp;
constexpr int kRun = 4;                           // pixels of a thread, one above the other
constexpr int kAcross = 8;                        // means along x of a thread
constexpr int kAround = kSsimWindow - 1;          // px that a tile needs more than it has, along an axis
constexpr int kHaloWidth = kTileWidth + kAround;  // 42
constexpr int kHaloHeight = kTileHeight + kAround;
constexpr int kTasks = kHaloHeight * kTileWidth / kAcross;  // of means along x
static_assert(kTileWidth == kWarp && kTileHeight == kRun * kTileWarps, "lane = column, warp = rows");

// Means along x, at every row of the halo: up to four maps side by side, so that one read is for all. The pitch
// is odd: eight lanes with a row each meet all banks.
using Means = float4[kHaloHeight][kTileWidth + 1];

struct Constants {  // a kernel's argument: FMAs read them in place, from constant memory
  float gaussian[kSsimWindow];
  float c1, c2;
  float per_pixel, per_window;  // 1 over the numbers of an image's pixels and whole windows
  bool vectors;                 // every row is whole vectors, and may be read as such

  Constants(const FusionLossParams& p, bool vectors)
      : c1(static_cast<float>(p.c1)),
        c2(static_cast<float>(p.c2)),
        per_pixel(static_cast<float>(1. / static_cast<double>(p.height * p.width))),
        per_window(static_cast<float>(
            1. / static_cast<double>((p.height - kSsimWindow + 1) * (p.width - kSsimWindow + 1)))),
        vectors(vectors) {
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

// Where a thread's run begins.
__device__ __forceinline__ const float* of_pixel(const FusionLossImage& image, int batch, int y, int x) {
  return kept(below(plane(image, batch) + x, y, static_cast<int>(image.row_stride)));
}

// The source's weight at the address of a pixel; 1 in a kernel without weights.
template <bool weighted>
__device__ __forceinline__ float weight_at(const FusionLossImage& weights, int batch, int y, int x) {
  return weighted ? at(weights, batch, y, x) : 1.f;
}

// Adds value k of a line to those of the n means that include it. k is a constant once unrolled.
template <int n>
__device__ __forceinline__ void add_to_run(float (&sum)[n], int k, float value, const Constants& constants) {
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (k >= i && k - i < kSsimWindow) sum[i] = fmaf(constants.gaussian[k - i], value, sum[i]);
}

// Value m of a vector. m is a constant once unrolled.
__device__ __forceinline__ float part(const float4& vector, int m) {
  return m == 0 ? vector.x : m == 1 ? vector.y : m == 2 ? vector.z : vector.w;
}

// Stores the means along x of up to four maps, side by side.
template <int kMaps>
__device__ __forceinline__ void store_means(float4* to, const float (&mean)[kMaps][kAcross]) {
#pragma unroll
  for (int i = 0; i < kAcross; ++i)
    to[i] = make_float4(mean[0][i], mean[1][i], mean[2][i], kMaps == 4 ? mean[kMaps - 1][i] : 0.f);
}

// The means along y of the thread's pixels, of the maps kBegin .. kEnd - 1, from those along x.
template <int kBegin, int kEnd, int kMaps>
__device__ __forceinline__ void mean_columns(float (&mean)[kMaps][kRun], const Means& means,
                                             const Constants& constants) {
  const int column = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kRun;
#pragma unroll
  for (int m = kBegin; m < kEnd; ++m)
#pragma unroll
    for (int i = 0; i < kRun; ++i) mean[m][i] = 0;
#pragma unroll
  for (int k = 0; k < kRun + kAround; ++k) {
    const float4 values = means[first + k][column];
#pragma unroll
    for (int m = kBegin; m < kEnd; ++m) add_to_run(mean[m], k, part(values, m - kBegin), constants);
  }
}

inline dim3 tile_grid(const FusionLossParams& p) {
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(p.width, kTileWidth)),
              static_cast<unsigned>(ceil_div<int64_t>(p.height, kTileHeight)),
              static_cast<unsigned>(p.batch));
}

// Whether a launch is supported: float32, and counts, of the bytes of a row too, that fit its 32-bit numbers.
inline bool launchable(const FusionLossParams& p) {
  constexpr int64_t most = 0x7fffffff;
  for (const FusionLossImage* image : {&p.f, &p.a, &p.b, &p.wa, &p.wb})
    if (image->row_stride > most / 8) return false;
  return p.dtype == DType::kFloat && p.chunks == fusion_loss_chunks(p.height, p.width) &&
         p.height >= kSsimWindow && p.width >= kSsimWindow && p.height <= 65535 * kTileHeight &&
         p.width <= most / 16 && p.height * p.width <= most && p.batch * p.height <= most && p.batch <= 65535;
}

}  // namespace mmif
