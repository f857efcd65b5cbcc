// Window attention, forward: a block takes a chunk of windows of one head, one after another; neighbouring
// blocks are the heads of one chunk, so that their rows, which are adjacent in memory, are read at about the
// same time.
//
// With s[i, j] = scale q_i . k_j + bias[i - j] over the j that i sees:
//     out_i = sum_j exp(s[i, j] - lse_i) v_j,    lse_i = log sum_j exp(s[i, j])
// Scores stay in base e until the maximum (in backward, lse) has been subtracted; only then are they
// multiplied by log2(e) for the hardware's power of 2. A score of 10^8 must be rounded alike in lse and in
// the score.
//
// Traffic: q, k, v are read once, out and lse written once; the bias table is read from L2.
#include "window_attention.cuh"

namespace mmif {
namespace {

// ---- 16-bit types: tensor cores -----------------------------------------------------------------
//
// Four warps; warp w has the queries 16 w .. 16 w + 15, which are the window's rows 2 w and 2 w + 1, and
// meets all 64 keys. An 8-wide tile of C is one row of keys. So with lane = 4 g + t, for key row j a lane
// holds
//     queries (2 w + r, g), r = 0, 1      keys (j, 2 t + c), c = 0, 1
// and needs the bias of dy = 2 w + r - j, dx = g - 2 t - c only: nine pairs.

constexpr int kHalfResident = 7;  // blocks per multiprocessor that must find registers: 72 per thread

template <typename T, int D>
struct alignas(16) HalfForwardTiles {
  T q[kSlots][D + 8], k[kSlots][D + 8], v[kSlots][D + 8];  // + 8: see load_a
  BiasPairs bias;
};

// The maximum, and the sum, over the four lanes that share a row of C.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// s[j][2 r + c] = q k of the warp's 16 queries and all keys.
template <typename T, int D>
__device__ __forceinline__ void half_scores(float (&s)[kSide][4], const HalfForwardTiles<T, D>& tiles,
                                            int warp, int lane) {
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    unsigned a[4], b[4];
    load_a(a, tiles.q, 16 * warp, d, lane);
#pragma unroll
    for (int j = 0; j < kSide; j += 2) {
      load_b_transposed(b, tiles.k, kSide * j, d, lane);
      multiply_add<T>(s[j], a, b[0], b[1]);
      multiply_add<T>(s[j + 1], a, b[2], b[3]);
    }
  }
}

// Scores to unnormalised weights exp(s - max); leaves each row's lse and the weights' sum. The maximum is
// subtracted before the factor log2(e): above 10^8, rounding that product costs many powers of 2. A row that
// sees nothing has the sum 0: it does not exist, and nothing of it is written.
template <bool kWhole>
__device__ __forceinline__ void half_softmax(float (&s)[kSide][4], float (&lse)[2], float (&sum)[2],
                                             LaneBias bias, unsigned seen, float scale) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = -INFINITY;
#pragma unroll
    for (int j = 0; j < kSide; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[j][2 * r + c];
        const float2 both = bias[r - j + kSide - 1][0];
        x = fmaf(x, scale, c ? both.y : both.x);
        if (!kWhole && !(seen >> (16 * r + 8 * c + j) & 1)) x = -INFINITY;
        most = fmaxf(most, x);
      }
    most = row_max(most);
    if (!kWhole && most == -INFINITY) most = 0.f;
    float total = 0.f;
#pragma unroll
    for (int j = 0; j < kSide; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[j][2 * r + c];
        x = fast_exp(x - most);
        total += x;
      }
    sum[r] = row_sum(total);
    lse[r] = fmaf(fast_log2(sum[r]), kLn2, most);
  }
}

// o[n][..] = weights v, columns 8 n .. 8 n + 7.
template <typename T, int D>
__device__ __forceinline__ void half_weighted_sum(float (&o)[D / 8][4], const float (&s)[kSide][4],
                                                  const HalfForwardTiles<T, D>& tiles, int lane) {
#pragma unroll
  for (int j = 0; j < kSide; j += 2) {
    const unsigned a[4] = {pack<T>(s[j][0], s[j][1]), pack<T>(s[j][2], s[j][3]),
                           pack<T>(s[j + 1][0], s[j + 1][1]), pack<T>(s[j + 1][2], s[j + 1][3])};
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      unsigned b[4];
      load_b(b, tiles.v, kSide * j, 8 * n, lane);
      multiply_add<T>(o[n], a, b[0], b[1]);
      multiply_add<T>(o[n + 1], a, b[2], b[3]);
    }
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kHalfThreads, kHalfResident)
    window_attention_fwd_half_kernel(const WindowAttentionParams p, const Plan plan) {
  using Rows = LaneRows<T, D>;
  using Tiles = HalfForwardTiles<T, D>;
  MMIF_SHARED(Tiles, tiles);
  const int head = blockIdx.x;
  load_bias_pairs(tiles.bias, p, head);
  const T* const qkv = static_cast<const T*>(p.qkv) + head * p.qkv_stride[4];
  T* const out = static_cast<T*>(p.out) + head * D;

  Place place(plan, chunk_begin(plan, blockIdx.y));
#pragma unroll 1
  for (int left = chunk_windows(plan, blockIdx.y); left > 0; --left, place.next(plan)) {
    const int thread = renewed_thread(), warp = thread / kWarp, lane = thread % kWarp;  // saves registers
    const int g = lane / 4, t = lane % 4;
    const Window window(p, plan, place);
    const LaneSlots slots(window, warp, lane);
    const int token[2] = {slots.token(p, place.batch, 0), slots.token(p, place.batch, 1)};
    Rows::load({tiles.q, tiles.k, tiles.v}, qkv + place.batch * p.qkv_stride[0],
               {slots.offset(0, p.qkv_stride[1], p.qkv_stride[2]),
                slots.offset(1, p.qkv_stride[1], p.qkv_stride[2])},
               static_cast<int>(p.qkv_stride[3]), slots, warp, lane);
    wait_copies();
    __syncthreads();

    float s[kSide][4] = {}, lse[2], sum[2], o[D / 8][4] = {};
    half_scores(s, tiles, warp, lane);
    const LaneBias bias = lane_bias(tiles.bias, warp, lane);
    if (window.whole())
      half_softmax<true>(s, lse, sum, bias, 0, plan.scale);
    else
      half_softmax<false>(s, lse, sum, bias, seen_by_lane(window, warp, lane), plan.scale);
    half_weighted_sum<T, D>(o, s, tiles, lane);

    // The warp's own rows of the q tile, which no other warp reads, take the result, to be written in whole
    // rows.
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = fast_inverse(sum[r]);
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        store_pair(&tiles.q[16 * warp + 8 * r + g][8 * n + 2 * t],
                   pack<T>(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse));
      if (t == 0 && slots.exists[r])
        static_cast<float*>(p.lse)[lse_index(p, place.batch, head, token[r])] = lse[r];
    }
    __syncwarp();
    Rows::store(tiles.q, out, {wide_product(token[0], p.heads * D), wide_product(token[1], p.heads * D)},
                slots, warp, lane);
    __syncthreads();  // the next window's rows may come
  }
}

// ---- float32: plain multiply-adds ---------------------------------------------------------------
//
// The 64 x 64 x D products, at 2 flop per multiply-add, keep the FMA units about as busy as the window's
// bytes keep memory, so operands must be cheap: one warp per window; a lane has two queries (slots l and l +
// 32) with their q and sums in registers; and each k or v vector, the same for all lanes, is one broadcast
// for 8 FMAs. The softmax is computed along the way, a few keys at a time.

template <int D>
struct alignas(16) FloatForwardTiles {
  float q[kSlots][D + 4];  // + 4: eight lanes reading a vector of their own row meet different banks
  float k[kSlots][D], v[kSlots][D];
  float bias[kBiasCells];
};

__device__ __forceinline__ float4 vector(const float* row, int d) {
  return *reinterpret_cast<const float4*>(row + d);
}

constexpr int kKeys = 4;        // half a row of the window's keys: as many scores as fit easily in registers
constexpr float kSlack = 16.f;  // log of the largest weight before the sums are rescaled

template <int D>
struct FloatQuery {
  float q[D], sum[D];
  float top = -INFINITY, total = 0.f;

  // Scores to weights relative to exp(top). The sums are rescaled only where the maximum exceeds top by far:
  // with a reference score at most 16 below the maximum, float loses nothing.
  __device__ __forceinline__ void softmax(float (&s)[kKeys], const float* bias, unsigned seen, float scale) {
    float most = -INFINITY;
#pragma unroll
    for (int x = 0; x < kKeys; ++x) {
      s[x] = seen >> x & 1 ? fmaf(s[x], scale, bias[-x]) : -INFINITY;
      most = fmaxf(most, s[x]);
    }
    if (most > top + kSlack) {
      const float shrink = fast_exp(top - most);
      top = most;
      total *= shrink;
#pragma unroll
      for (int d = 0; d < D; ++d) sum[d] *= shrink;
    }
    const float from = top == -INFINITY ? 0.f : top;
#pragma unroll
    for (int x = 0; x < kKeys; ++x) {
      s[x] = fast_exp(s[x] - from);
      total += s[x];
    }
  }
};

// The keys (j, i) ... (j, i + 3) for both queries.
template <int D>
__device__ __forceinline__ void float_keys(FloatQuery<D> (&query)[2], const FloatForwardTiles<D>& tiles,
                                           int j, int i, const Window& window, float scale, int lane) {
  float s[2][kKeys] = {};
#pragma unroll
  for (int x = 0; x < kKeys; ++x)
#pragma unroll
    for (int d = 0; d < D; d += 4) {
      const float4 k = vector(tiles.k[kSide * j + i + x], d);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float* q = query[n].q + d;
        s[n][x] = fmaf(q[3], k.w, fmaf(q[2], k.z, fmaf(q[1], k.y, fmaf(q[0], k.x, s[n][x]))));
      }
    }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int y = lane / kSide + 4 * n, x = lane % kSide;
    const unsigned seen = window.y.seen_by(y) >> j & 1 ? window.x.seen_by(x) >> i : 0;
    query[n].softmax(s[n], &tiles.bias[(y - j + kSide - 1) * kOffsets + x - i + kSide - 1], seen, scale);
  }
#pragma unroll
  for (int x = 0; x < kKeys; ++x)
#pragma unroll
    for (int d = 0; d < D; d += 4) {
      const float4 v = vector(tiles.v[kSide * j + i + x], d);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float* sum = query[n].sum + d;
        sum[0] = fmaf(s[n][x], v.x, sum[0]);
        sum[1] = fmaf(s[n][x], v.y, sum[1]);
        sum[2] = fmaf(s[n][x], v.z, sum[2]);
        sum[3] = fmaf(s[n][x], v.w, sum[3]);
      }
    }
}

template <int D>
__global__ void __launch_bounds__(kWarp)
    window_attention_fwd_float_kernel(const WindowAttentionParams p, const Plan plan) {
  using TileRows = Rows<float, D, kWarp>;
  using Tiles = FloatForwardTiles<D>;
  MMIF_SHARED(Tiles, tiles);
  const int head = blockIdx.x, lane = threadIdx.x;
  load_bias<kWarp>(tiles.bias, p, head);

  Place place(plan, chunk_begin(plan, blockIdx.y));
#pragma unroll 1
  for (int left = chunk_windows(plan, blockIdx.y); left > 0; --left, place.next(plan)) {
    const Window window(p, plan, place);
    TileRows::load_qkv(tiles.q, tiles.k, tiles.v, p, head, window, lane);
    wait_copies();
    __syncthreads();

    FloatQuery<D> query[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int d = 0; d < D; ++d) {
        query[i].q[d] = tiles.q[lane + kWarp * i][d];
        query[i].sum[d] = 0.f;
      }
#pragma unroll 1
    for (int i = 0; i < kSlots; i += kKeys)
      if (window.y.exists(i / kSide))
        float_keys(query, tiles, i / kSide, i % kSide, window, plan.scale, lane);

    // A lane's own rows of the q tile take its results, to be written in whole rows by the warp.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int slot = lane + kWarp * i;
      const float inverse = 1.f / query[i].total;
#pragma unroll
      for (int d = 0; d < D; ++d) tiles.q[slot][d] = quotient(query[i].sum[d], query[i].total, inverse);
      if (window.exists(slot))
        static_cast<float*>(p.lse)[window.lse_index(p, head, slot)] = query[i].top + logf(query[i].total);
    }
    __syncthreads();
    TileRows::store(tiles.q, static_cast<float*>(p.out) + head * D, p.heads * D, p, window, lane);
    __syncthreads();  // the next window's rows may come
  }
}

template <int D>
cudaError_t launch_by_type(const WindowAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.chunks));
  const Plan shares = plan(p);
  switch (p.dtype) {
    case DType::kFloat:
      return launch(window_attention_fwd_float_kernel<D>, grid, kWarp, 0, stream, p, shares);
    case DType::kHalf:
      return launch(window_attention_fwd_half_kernel<__half, D>, grid, kHalfThreads, 0, stream, p, shares);
    case DType::kBFloat16:
      return launch(window_attention_fwd_half_kernel<__nv_bfloat16, D>, grid, kHalfThreads, 0, stream, p,
                    shares);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t window_attention_fwd_launch(const WindowAttentionParams& p, cudaStream_t stream) {
  if (window_count(p) * p.heads == 0) return cudaSuccess;
  if (!launchable(p)) return cudaErrorInvalidValue;
  return p.head_dim == 16   ? launch_by_type<16>(p, stream)
         : p.head_dim == 32 ? launch_by_type<32>(p, stream)
                            : cudaErrorInvalidValue;
}

}  // namespace mmif
