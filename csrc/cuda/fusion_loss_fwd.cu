// The fusion loss, forward: one block per tile of the image, then one small block per image for the final
// sums.
//
// Traffic: f, a, b (wa, wb) are read once, the tiles' halos from L2; moments and choices are written once.
// Sums have a fixed order, in float within a tile (a tree of 1024 pixels), in double over tiles: no
// atomics, so every run gives the same bits. ../fusion_loss.h has the formulas and the derivation of the
// moments.
#include "fusion_loss.cuh"

namespace mmif {
namespace {

// Off: the square of f - a, or f - b. The variances of f and a are that of f - a and twice the covariance.
enum Mean { kF, kA, kB, kFA, kFB, kOffA, kOffB, kMeans };
enum Picture { kFused, kSourceA, kSourceB, kPictures };
constexpr int kTerms = 3;

// A row of the halo: kBefore columns, a multiple of a vector, the tile, and as many again. The pitch puts the
// vectors of two rows on different banks.
constexpr int kBefore = 8, kVectors = (2 * kBefore + kTileWidth) / 4, kPitch = 4 * kVectors + 4;
static_assert(kBefore >= kSsimEdge && kPitch % 8 == 4, "the halo fits, no bank conflicts along x");

struct alignas(16) ForwardTiles {
  float pictures[kPictures][kHaloHeight][kPitch];
  Means means;
  float sums[kTerms][kTileWarps];
};

// Starts to load the tile and its surroundings. Rows beyond the border repeat it, as Sobel needs them; no
// whole window has any. Of columns, see Columns. Where rows are whole vectors a warp copies two at a time, and
// those beyond the border are zeros.
__device__ __forceinline__ void load_pictures(ForwardTiles& tiles, const FusionLossParams& p,
                                              const Constants& constants, const Tile& tile) {
  constexpr int kHalf = kWarp / 2, kAtOnce = kTileThreads / kHalf;
  const FusionLossImage* const images[kPictures] = {&p.f, &p.a, &p.b};
  if (constants.vectors) {
    const int first = threadIdx.x / kHalf, column = threadIdx.x % kHalf * 4;
    const int x = tile.x + column - kBefore;
    const bool in = x >= 0 && x < tile.width, mine = column < 4 * kVectors;
#pragma unroll
    for (int picture = 0; picture < kPictures; ++picture) {
      const float* const from = kept(plane(*images[picture], tile.image) + (in ? x : 0));
      const int row_elements = renewed(static_cast<int>(images[picture]->row_stride));
      float* const to = &tiles.pictures[picture][0][0] + first * kPitch + column;
#pragma unroll
      for (int row = 0; row < kHaloHeight; row += kAtOnce) {
        const int y = clamped(tile.y + row + first - kSsimEdge, tile.height - 1);
        copy_bytes<16>(to + row * kPitch, below(from, y, row_elements), in,
                       mine && (row + kAtOnce <= kHaloHeight || row + first < kHaloHeight));
      }
    }
    return;
  }
#pragma unroll
  for (int picture = 0; picture < kPictures; ++picture) {
    const float* const from = plane(*images[picture], tile.image);
#pragma unroll 1
    for (int i = threadIdx.x; i < kHaloHeight * kHaloWidth; i += kTileThreads) {
      const int row = i / kHaloWidth, column = i % kHaloWidth;
      const int y = clamped(tile.y + row - kSsimEdge, tile.height - 1);
      const int x = clamped(tile.x + column - kSsimEdge, tile.width - 1);
      copy_bytes<4>(&tiles.pictures[picture][row][column + kBefore - kSsimEdge],
                    below(from + x, y, static_cast<int>(images[picture]->row_stride)), true, true);
    }
  }
}

// The means along x of the maps kBegin .. kEnd - 1.
template <int kBegin, int kEnd>
__device__ __forceinline__ void mean_rows(ForwardTiles& tiles, const Constants& constants) {
  constexpr int kSkipped = kBefore - kSsimEdge;  // values before the first that counts
  for (int task = threadIdx.x; task < kTasks; task += kTileThreads) {
    const int row = task % kHaloHeight, column = task / kHaloHeight * kAcross;
    float mean[kEnd - kBegin][kAcross] = {};
#pragma unroll
    for (int vector = 0; vector * 4 < kSkipped + kAcross + kAround; ++vector) {
      float4 four[kPictures];
#pragma unroll
      for (int picture = 0; picture < kPictures; ++picture)
        four[picture] = *reinterpret_cast<const float4*>(&tiles.pictures[picture][row][column + 4 * vector]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = 4 * vector + i - kSkipped;
        if (k < 0 || k >= kAcross + kAround) continue;
        const float f = part(four[kFused], i), a = part(four[kSourceA], i), b = part(four[kSourceB], i);
        const float values[kMeans] = {f, a, b, f * a, f * b, (f - a) * (f - a), (f - b) * (f - b)};
#pragma unroll
        for (int m = kBegin; m < kEnd; ++m) add_to_run(mean[m - kBegin], k, values[m], constants);
      }
    }
    store_means(&tiles.means[row][column], mean);
  }
}

// SSIM to one source and half of its derivatives, of that by E[f^2] minus the whole; by_mean is the one by m_f
// through N1 and D1 alone.
struct Ssim {
  float value, by_mean, by_ff, by_fs;
};
__device__ __forceinline__ Ssim ssim(float mf, float ms, float fs, float off, float c1, float c2) {
  const float apart = mf - ms, n1 = fmaf(2 * mf, ms, c1), n2 = fmaf(2.f, fmaf(-mf, ms, fs), c2);
  const float d1 = fmaf(apart, apart, n1), d2 = n2 + fmaf(-apart, apart, off);
  // One Newton step: the mean over an image must not depend on which way the hardware's reciprocal errs.
  const float d = d1 * d2, about = fast_inverse(d), inverse = fmaf(fmaf(-d, about, 1.f), about, about);
  // In this order: of two equal images it is 1.
  const float value = n1 * n2 * inverse, rest = value * inverse;
  return {value, ms * (n2 * inverse) - mf * (rest * d2), rest * d1, n1 * inverse};
}

// Twice one pixel's structure term; `moments` gets its four.
__device__ __forceinline__ float structure(const float (&mean)[kMeans], const Constants& by, float wa,
                                           float wb, float4& moments) {
  const Ssim sa = ssim(mean[kF], mean[kA], mean[kFA], mean[kOffA], by.c1, by.c2);
  const Ssim sb = ssim(mean[kF], mean[kB], mean[kFB], mean[kOffB], by.c1, by.c2);
  const float by_ff = 0.5f * (wa * sa.by_ff + wb * sb.by_ff), by_fa = -wa * sa.by_fs, by_fb = -wb * sb.by_fs;
  moments = make_float4(
      -(wa * sa.by_mean + wb * sb.by_mean) - 2 * mean[kF] * by_ff - mean[kA] * by_fa - mean[kB] * by_fb,
      by_ff, by_fa, by_fb);
  return wa * (1 - sa.value) + wb * (1 - sb.value);
}

// The structure term's sum over the thread's pixels. What is not a whole window is computed and dropped: that
// is cheaper than a branch.
template <bool weighted>
__device__ __forceinline__ float structure_run(const float (&mean)[kMeans][kRun], const FusionLossParams& p,
                                               const Tile& tile, const Constants& constants) {
  const int x = tile.x + threadIdx.x % kWarp, top = tile.y + threadIdx.x / kWarp * kRun;
  const int inner_height = tile.height - kSsimWindow + 1, inner_width = tile.width - kSsimWindow + 1;
  const bool has_x = x >= kSsimEdge && x < tile.width - kSsimEdge;
  const int first = has_x ? kSsimEdge - top : kRun, end = tile.height - kSsimEdge - top;  // runs of windows
  // Of the run's first pixel; maybe before the first of all.
  float4* const moments =
      kept(static_cast<float4*>(p.moments) +
           (static_cast<int64_t>(tile.image * inner_height + top - kSsimEdge) * inner_width + x - kSsimEdge));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const bool has = i >= first && i < end;
    float at[kMeans];
#pragma unroll
    for (int m = 0; m < kMeans; ++m) at[m] = mean[m][i];
    float wa = 1.f, wb = 1.f;
    if (weighted && has) {
      wa = weight_at<weighted>(p.wa, tile.image, top + i, x);
      wb = weight_at<weighted>(p.wb, tile.image, top + i, x);
    }
    float4 four;
    const float lost = structure(at, constants, wa, wb, four);
    if (has) *(moments + wide_product(inner_width, i)) = four;
    sum += has ? lost : 0.f;
  }
  return 0.5f * sum;
}

// The places of a pixel and its neighbours in a row of the halo; beyond the border, the border.
struct Columns {
  int left, middle, right;

  __device__ __forceinline__ Columns(int x, const Tile& tile)
      : left(kBefore + x - tile.x - (x > 0)),
        middle(kBefore + x - tile.x),
        right(kBefore + x - tile.x + (x < tile.width - 1)) {}
};

// A picture's 3 x 3 neighbourhood; it slides down the pixels of a run.
struct Around {
  float left[3], middle[3], right[3], across[3];  // across: right - left

  __device__ __forceinline__ void take(int i, const float* row, const Columns& columns) {
    left[i] = row[columns.left], middle[i] = row[columns.middle], right[i] = row[columns.right];
    across[i] = right[i] - left[i];
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
  float choices;  // above kChoices
};
// Choices are added up in float, where a comparison is a 1 or a 0 in one instruction; their byte is the lowest
// of the sum.
constexpr float kChoices = 1 << 23;
__device__ __forceinline__ float one_if(bool x) { return x ? 1.f : 0.f; }

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

  float choices = brighter_a ? kChoices : kChoices + kIntensityFromB;
  choices += stronger_a ? 0.f : kGradientFromB;
  choices = fmaf(one_if(off > 0), kIntensityUp, choices);
  choices = fmaf(one_if(off < 0), kIntensityDown, choices);
  choices = fmaf(one_if(off_x > 0), kHorizontalUp, choices);
  choices = fmaf(one_if(off_x < 0), kHorizontalDown, choices);
  choices = fmaf(one_if(off_y > 0), kVerticalUp, choices);
  choices = fmaf(one_if(off_y < 0), kVerticalDown, choices);
  const float wi = brighter_a ? wa : wb, wg = stronger_a ? wa : wb;
  return {wi * fabsf(off), wg * (fabsf(off_x) + fabsf(off_y)), choices};
}

// Both terms' sums over the thread's pixels; writes their choices.
template <bool weighted>
__device__ __forceinline__ float2 edges_run(const ForwardTiles& tiles, const FusionLossParams& p,
                                            const Tile& tile) {
  const int thread = renewed_thread();
  const int x = tile.x + thread % kWarp, first = thread / kWarp * kRun;
  const Columns columns(x, tile);
  const int rows = x < tile.width ? tile.height - tile.y - first : 0;  // of the run in the image
  uint8_t* const choices = kept(p.choices + tile.place(tile.y + first, x));
  Around around[kPictures];
  float intensity = 0, gradient = 0;
#pragma unroll
  for (int i = 0; i < kRun + 2; ++i) {
#pragma unroll
    for (int picture = 0; picture < kPictures; ++picture)
      around[picture].take(i % 3, tiles.pictures[picture][first + i + kSsimEdge - 1], columns);
    if (i < 2) continue;
    const bool has = i - 2 < rows;
    float wa = 1.f, wb = 1.f;
    if (weighted && has) {
      wa = weight_at<weighted>(p.wa, tile.image, tile.y + first + i - 2, x);
      wb = weight_at<weighted>(p.wb, tile.image, tile.y + first + i - 2, x);
    }
    const Edges at = edges<weighted>(around, i, wa, wb);
    if (has) *(choices + wide_product(tile.width, i - 2)) = static_cast<uint8_t>(bits_of(at.choices));
    intensity += has ? at.intensity : 0.f, gradient += has ? at.gradient : 0.f;
  }
  return make_float2(intensity, gradient);
}

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {  // the same bits in every lane
#pragma unroll
  for (int flip = kWarp / 2; flip > 0; flip /= 2) x += __shfl_xor_sync(kAllLanes, x, flip);
  return x;
}

__device__ __forceinline__ void put_sum(ForwardTiles& tiles, int term, float of_thread) {
  const float sum = warp_sum(of_thread);
  if (threadIdx.x % kWarp == 0) tiles.sums[term][threadIdx.x / kWarp] = sum;
}

template <bool weighted>
__global__ void __launch_bounds__(kTileThreads, 3)
    fusion_loss_fwd_kernel(const FusionLossParams p, const Constants constants) {
  MMIF_SHARED_DYNAMIC(ForwardTiles, tiles);
  // The means take two turns: one vector holds four maps, and the registers as many sums.
  constexpr int kFirst = 3;
  const Tile tile(p);
  load_pictures(tiles, p, constants, tile);
  wait_copies();
  __syncthreads();  // the pictures are complete
  mean_rows<0, kFirst>(tiles, constants);
  const float2 edges = edges_run<weighted>(tiles, p, tile);  // needs the pictures only, not the means
  put_sum(tiles, 0, edges.x), put_sum(tiles, 1, edges.y);
  __syncthreads();  // the first means are complete
  float mean[kMeans][kRun];
  mean_columns<0, kFirst>(mean, tiles.means, constants);
  __syncthreads();  // the first means are used
  mean_rows<kFirst, kMeans>(tiles, constants);
  __syncthreads();  // the other means are complete
  mean_columns<kFirst, kMeans>(mean, tiles.means, constants);
  put_sum(tiles, 2, structure_run<weighted>(mean, p, tile, constants));
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

// Whether all rows of the pictures are whole vectors.
bool in_vectors(const FusionLossParams& p) {
  uintptr_t all = p.width;
  for (const FusionLossImage* image : {&p.f, &p.a, &p.b})
    all |= reinterpret_cast<uintptr_t>(image->data) / sizeof(float) |
           static_cast<uintptr_t>(image->row_stride | image->batch_stride);
  return all % 4 == 0;
}

}  // namespace

cudaError_t fusion_loss_fwd_launch(const FusionLossParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (!launchable(p)) return cudaErrorInvalidValue;
  const dim3 images(static_cast<unsigned>(p.batch));
  const auto kernel = p.wa.data == nullptr ? fusion_loss_fwd_kernel<false> : fusion_loss_fwd_kernel<true>;
  const cudaError_t error = launch(kernel, tile_grid(p), dim3(kTileThreads), sizeof(ForwardTiles), stream, p,
                                   Constants(p, in_vectors(p)));
  if (error != cudaSuccess) return error;
  return launch(fusion_loss_terms_kernel, images, dim3(kTerms * kWarp), 0, stream, p);
}

}  // namespace mmif
