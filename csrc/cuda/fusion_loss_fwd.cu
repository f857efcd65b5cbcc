// The fusion loss, forward: one block per tile of the image, then one small block per image for the final
// sums.
//
// Traffic: f, a, b (wa, wb) are read once, the tiles' halos from L2; moments and choices are written once.
// Sums have a fixed order, in float within a tile (a tree of 1024 pixels), in double over tiles: no atomics,
// so every run gives the same bits. ../fusion_loss.h has the formulas and the derivation of the moments.
#include "fusion_loss.cuh"

namespace mmif {
namespace {

// Off: the square of f - a, or f - b. The variances of f and a are that of f - a and twice the covariance.
enum Mean { kF, kA, kB, kFA, kFB, kOffA, kOffB, kMeans };
enum Picture { kFused, kSourceA, kSourceB, kPictures };
constexpr int kTerms = 3;

struct ForwardTiles {
  Halo pictures[kPictures];
  alignas(16) Columns means[kMeans];
  float sums[kTerms][kTileWarps];
};

// Starts to load the tile and its surroundings, the border replicated: right for Sobel, and never part of a
// whole window. A warp takes every eighth row; its first lanes take the columns beyond 32.
__device__ __forceinline__ void load_pictures(ForwardTiles& tiles, const FusionLossParams& p,
                                              const Tile& tile) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int x = clamped(tile.x + lane - kSsimEdge, tile.width - 1);
  const int beyond = clamped(tile.x + lane + kWarp - kSsimEdge, tile.width - 1);
  const FusionLossImage* const images[kPictures] = {&p.f, &p.a, &p.b};
#pragma unroll
  for (int i = 0; i < kPictures; ++i) {
    const float* const from = plane(*images[i], tile.image) + x;
    const float* const more = plane(*images[i], tile.image) + beyond;
#pragma unroll
    for (int row = 0; row < kHaloHeight; row += kTileWarps) {
      const bool has = row + kTileWarps <= kHaloHeight || row + warp < kHaloHeight;
      const int y = clamped(tile.y + row + warp - kSsimEdge, tile.height - 1);
      float* const to = &tiles.pictures[i][0][0] + (row + warp) * kPitch + lane;
      copy_4_bytes(to, below(from, y, static_cast<int>(images[i]->row_stride)), true, has);
      copy_4_bytes(to + kWarp, below(more, y, static_cast<int>(images[i]->row_stride)), true,
                   has && lane < kHaloWidth - kWarp);
    }
  }
}

// The means along x.
__device__ __forceinline__ void mean_rows(ForwardTiles& tiles, const Constants& constants) {
  for (int task = threadIdx.x; task < kHaloHeight * kGroups; task += kTileThreads) {
    const int row = task / kGroups, column = task % kGroups * kRun;
    float mean[kMeans][kRun] = {};
#pragma unroll
    for (int k = 0; k < kSsimWindow + kRun - 1; ++k) {
      const float f = tiles.pictures[kFused][row][column + k];
      const float a = tiles.pictures[kSourceA][row][column + k];
      const float b = tiles.pictures[kSourceB][row][column + k];
      const float values[kMeans] = {f, a, b, f * a, f * b, (f - a) * (f - a), (f - b) * (f - b)};
#pragma unroll
      for (int m = 0; m < kMeans; ++m) add_to_run(mean[m], k, values[m], constants);
    }
#pragma unroll
    for (int m = 0; m < kMeans; ++m)
      *reinterpret_cast<float4*>(&tiles.means[m][row][column]) =
          make_float4(mean[m][0], mean[m][1], mean[m][2], mean[m][3]);
  }
}

// SSIM to one source; by_mean is its derivative by m_f through N1 and D1 alone.
struct Ssim {
  float value, by_mean, by_ff, by_fs;
};
__device__ __forceinline__ Ssim ssim(float mf, float ms, float fs, float off, float c1, float c2) {
  const float n1 = 2 * (mf * ms) + c1, n2 = 2 * (fs - mf * ms) + c2;
  const float d1 = mf * mf + ms * ms + c1, d2 = n2 + (off - (mf - ms) * (mf - ms));
  // One Newton step: the mean over an image must not depend on which way the hardware's reciprocal errs.
  const float d = d1 * d2, about = fast_inverse(d), inverse = fmaf(fmaf(-d, about, 1.f), about, about);
  const float value = n1 * n2 * inverse;
  return {value, 2 * inverse * (ms * n2 - mf * value * d2), -value * d1 * inverse, 2 * n1 * inverse};
}

// One pixel's structure term; writes its four moments, `plane` elements apart.
__device__ __forceinline__ float structure(const float (&mean)[kMeans], const Constants& by, float wa,
                                           float wb, float* moments, int64_t plane) {
  const Ssim sa = ssim(mean[kF], mean[kA], mean[kFA], mean[kOffA], by.c1, by.c2);
  const Ssim sb = ssim(mean[kF], mean[kB], mean[kFB], mean[kOffB], by.c1, by.c2);
  wa *= 0.5f, wb *= 0.5f;
  const float by_ff = -(wa * sa.by_ff + wb * sb.by_ff), by_fa = -wa * sa.by_fs, by_fb = -wb * sb.by_fs;
  moments[0] =
      -(wa * sa.by_mean + wb * sb.by_mean) - 2 * mean[kF] * by_ff - mean[kA] * by_fa - mean[kB] * by_fb;
  moments[plane] = by_ff;
  moments[2 * plane] = by_fa;
  moments[3 * plane] = by_fb;
  return wa * (1 - sa.value) + wb * (1 - sb.value);
}

// The means along y of a thread's four pixels, and the structure term's sum over them.
template <bool weighted>
__device__ __forceinline__ float structure_run(const ForwardTiles& tiles, const FusionLossParams& p,
                                               const Tile& tile, const Constants& constants) {
  const int column = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kRun;
  float mean[kMeans][kRun] = {};
#pragma unroll
  for (int k = 0; k < kSsimWindow + kRun - 1; ++k)
#pragma unroll
    for (int m = 0; m < kMeans; ++m) add_to_run(mean[m], k, tiles.means[m][first + k][column], constants);

  const int x = tile.x + column, inner_width = tile.width - kSsimWindow + 1;
  const int inner = (tile.height - kSsimWindow + 1) * inner_width;
  float* const moments = static_cast<float*>(p.moments) + wide_product(tile.image * 4, inner);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int y = tile.y + first + i;
    if (x < kSsimEdge || x >= tile.width - kSsimEdge || y < kSsimEdge || y >= tile.height - kSsimEdge)
      continue;
    float at[kMeans];
#pragma unroll
    for (int m = 0; m < kMeans; ++m) at[m] = mean[m][i];
    sum += structure(at, constants, weight_at<weighted>(p.wa, tile.image, y, x),
                     weight_at<weighted>(p.wb, tile.image, y, x),
                     moments + ((y - kSsimEdge) * inner_width + x - kSsimEdge), inner);
  }
  return sum;
}

// A picture's 3 x 3 neighbourhood; it slides down the pixels of a run.
struct Around {
  float left[3], middle[3], right[3], across[3];  // across: right - left

  __device__ __forceinline__ void take(int i, const float* pixel) {
    left[i] = pixel[-1], middle[i] = pixel[0], right[i] = pixel[1], across[i] = right[i] - left[i];
  }
  // Row i of a run, taken in order, is the lowest of the three. Returns the derivatives at the middle row, in
  // the reference's order.
  __device__ __forceinline__ float x(int i) const {
    return (across[(i + 1) % 3] + across[i % 3]) + 2 * across[(i + 2) % 3];
  }
  __device__ __forceinline__ float y(int i) const {
    const int above = (i + 1) % 3, below = i % 3;
    return ((left[below] - left[above]) + (right[below] - right[above])) +
           2 * (middle[below] - middle[above]);
  }
};

struct Edges {
  float intensity, gradient;
  int choices;
};

// Intensity and gradient of the pixel above row i, the last row taken.
template <bool weighted>
__device__ __forceinline__ Edges edges(const Around (&around)[kPictures], int i, float wa, float wb) {
  const float f = around[kFused].middle[(i + 2) % 3];
  const float a = around[kSourceA].middle[(i + 2) % 3], b = around[kSourceB].middle[(i + 2) % 3];
  const bool brighter_a = weighted ? wa * a >= wb * b : a >= b;
  const float off = f - (brighter_a ? a : b);

  const float ax = around[kSourceA].x(i), ay = around[kSourceA].y(i);
  const float bx = around[kSourceB].x(i), by = around[kSourceB].y(i);
  const float strength_a = fabsf(ax) + fabsf(ay), strength_b = fabsf(bx) + fabsf(by);
  const bool stronger_a = weighted ? wa * strength_a >= wb * strength_b : strength_a >= strength_b;
  const float off_x = around[kFused].x(i) - (stronger_a ? ax : bx);
  const float off_y = around[kFused].y(i) - (stronger_a ? ay : by);

  const int choices = (off > 0 ? kIntensityUp : 0) | (off < 0 ? kIntensityDown : 0) |
                      (brighter_a ? 0 : kIntensityFromB) | (off_x > 0 ? kHorizontalUp : 0) |
                      (off_x < 0 ? kHorizontalDown : 0) | (off_y > 0 ? kVerticalUp : 0) |
                      (off_y < 0 ? kVerticalDown : 0) | (stronger_a ? 0 : kGradientFromB);
  const float wi = brighter_a ? wa : wb, wg = stronger_a ? wa : wb;
  return {wi * fabsf(off), wg * (fabsf(off_x) + fabsf(off_y)), choices};
}

// Both terms' sums over a thread's four pixels; writes their choices.
template <bool weighted>
__device__ __forceinline__ void edges_run(const ForwardTiles& tiles, const FusionLossParams& p,
                                          const Tile& tile, float& intensity, float& gradient) {
  const int column = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kRun, x = tile.x + column;
  Around around[kPictures];
  intensity = gradient = 0;
#pragma unroll
  for (int i = 0; i < kRun + 2; ++i) {
#pragma unroll
    for (int picture = 0; picture < kPictures; ++picture)
      around[picture].take(i % 3, &tiles.pictures[picture][first + i + kSsimEdge - 1][column + kSsimEdge]);
    const int y = tile.y + first + i - 2;
    if (i < 2 || x >= tile.width || y >= tile.height) continue;
    const Edges at = edges<weighted>(around, i, weight_at<weighted>(p.wa, tile.image, y, x),
                                     weight_at<weighted>(p.wb, tile.image, y, x));
    p.choices[tile.place(y, x)] = static_cast<uint8_t>(at.choices);
    intensity += at.intensity, gradient += at.gradient;
  }
}

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {  // the same bits in every lane
#pragma unroll
  for (int flip = kWarp / 2; flip > 0; flip /= 2) x += __shfl_xor_sync(kAllLanes, x, flip);
  return x;
}

template <bool weighted>
__global__ void __launch_bounds__(kTileThreads, 3)
    fusion_loss_fwd_kernel(const FusionLossParams p, const Constants constants) {
  MMIF_SHARED_DYNAMIC(ForwardTiles, tiles);
  const Tile tile(p);
  load_pictures(tiles, p, tile);
  wait_copies();
  __syncthreads();  // the pictures are complete
  mean_rows(tiles, constants);
  float sums[kTerms];
  // These need the pictures only, not the means.
  edges_run<weighted>(tiles, p, tile, sums[0], sums[1]);
  __syncthreads();  // the means are complete
  sums[2] = structure_run<weighted>(tiles, p, tile, constants);

#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    const float sum = warp_sum(sums[term]);
    if (threadIdx.x % kWarp == 0) tiles.sums[term][threadIdx.x / kWarp] = sum;
  }
  __syncthreads();  // the warps' sums are complete
  if (threadIdx.x >= kTerms) return;
  double sum = 0;
  for (int warp = 0; warp < kTileWarps; ++warp) sum += tiles.sums[threadIdx.x][warp];
  const int64_t chunk = (static_cast<int64_t>(tile.image) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  p.partial[chunk * kTerms + threadIdx.x] = sum;
}

// One block per image, one warp per term.
__global__ void __launch_bounds__(kTerms* kWarp) fusion_loss_terms_kernel(const FusionLossParams p) {
  const int term = threadIdx.x / kWarp;
  const double* const partial = p.partial + blockIdx.x * p.chunks * kTerms + term;
  double sum = 0;
  for (int64_t chunk = threadIdx.x % kWarp; chunk < p.chunks; chunk += kWarp) sum += partial[chunk * kTerms];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp) return;
  const int64_t pixels = p.height * p.width;
  const int64_t windows = (p.height - kSsimWindow + 1) * (p.width - kSsimWindow + 1);
  static_cast<float*>(p.terms)[static_cast<int64_t>(blockIdx.x) * kTerms + term] =
      static_cast<float>(sum / static_cast<double>(term < 2 ? pixels : windows));
}

}  // namespace

cudaError_t fusion_loss_fwd_launch(const FusionLossParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (!launchable(p)) return cudaErrorInvalidValue;
  const dim3 images(static_cast<unsigned>(p.batch));
  const auto kernel = p.wa.data == nullptr ? fusion_loss_fwd_kernel<false> : fusion_loss_fwd_kernel<true>;
  const cudaError_t error =
      launch(kernel, tile_grid(p), dim3(kTileThreads), sizeof(ForwardTiles), stream, p, Constants(p));
  if (error != cudaSuccess) return error;
  return launch(fusion_loss_terms_kernel, images, dim3(kTerms * kWarp), 0, stream, p);
}

}  // namespace mmif
