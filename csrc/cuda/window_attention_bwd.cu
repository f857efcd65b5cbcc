// Window attention, backward: one block per head and chunk of windows, which it takes one after another;
// d_bias is summed in registers over the chunk, so its partial tables are small and the order of every sum is
// fixed.
//
// Forward saved lse, from which backward recomputes the weights: p[i, j] = exp(s[i, j] - lse_i). Then
//
//     d_v_j     = sum_i p[i, j] d_out_i
//     delta_i   = sum_j p[i, j] (d_out_i . v_j) = d_out_i . out_i
//     d_s[i, j] = p[i, j] (d_out_i . v_j - delta_i)
//     d_q_i     = scale sum_j d_s[i, j] k_j
//     d_k_j     = scale sum_i d_s[i, j] q_i
//     d_bias[o] = sum of d_s[i, j] over i - j = o
//
// Traffic: q, k, v, out, d_out and lse are read once, d_q, d_k, d_v written once.
// Where i does not see j, p and d_s are set to 0, not computed to be 0.
#include "window_attention.cuh"

namespace mmif {
namespace {

// ---- 16-bit types: tensor cores -----------------------------------------------------------------
//
// Four warps, lanes placed as in forward. First a warp takes its 16 queries and all keys: p and d_s, which
// make its rows of d_q and are left in shared memory, rounded to T. Then, with the roles turned, a warp makes
// 16 rows of d_k = d_s' q and d_v = p' d_out from them.

template <typename T, int D>
struct alignas(16) HalfBackwardTiles {
  T q[kSlots][D + 8], k[kSlots][D + 8], v[kSlots][D + 8], d_out[kSlots][D + 8];
  T p[kSlots][kSlots + 8];    // before p is known: out
  T d_s[kSlots][kSlots + 8];  // after the last window: d_bias by warp
  BiasPairs bias;
};

// delta of the lane's two rows: the diagonals of d_out out', of which lane 4 g + g / 2 has column g.
template <typename T, int D>
__device__ __forceinline__ void half_deltas(float (&delta)[2], const HalfBackwardTiles<T, D>& tiles, int warp,
                                            int lane) {
  float products[2][4] = {};  // by rows of out: 0 .. 7 and 8 .. 15
#pragma unroll
  for (int n = 0; n < D; n += 16) {
    unsigned a[4], b[4];
    load_a(a, tiles.d_out, 16 * warp, n, lane);
    load_b_transposed(b, tiles.p, 16 * warp, n, lane);
    multiply_add<T>(products[0], a, b[0], b[1]);
    multiply_add<T>(products[1], a, b[2], b[3]);
  }
  const int g = lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r)
    delta[r] = __shfl_sync(kAllLanes, g % 2 ? products[r][2 * r + 1] : products[r][2 * r], 4 * g + g / 2);
}

// s, d_p of the key row j to p, d_s in place.
template <bool kWhole>
__device__ __forceinline__ void half_d_scores(float (&s)[4], float (&d_p)[4], float (&d_bias)[kRowOffsets][2],
                                              LaneBias bias, const float (&lse)[2], const float (&delta)[2],
                                              unsigned seen, int j, float scale) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int i = 2 * r + c, row = r - j + kSide - 1;
      s[i] = fast_exp(fmaf(s[i], scale, c ? bias[row][0].y : bias[row][0].x) - lse[r]);
      d_p[i] = s[i] * (d_p[i] - delta[r]);
      if (!kWhole && !(seen >> (16 * r + 8 * c + j) & 1)) s[i] = d_p[i] = 0.f;
      d_bias[row][c] += d_p[i];
    }
}

// First: p and d_s to shared memory, d_bias to registers, and the warp's 16 rows of d_q, not scaled.
template <bool kWhole, typename T, int D>
__device__ __forceinline__ void half_queries(float (&d_q)[D / 8][4], float (&d_bias)[kRowOffsets][2],
                                             HalfBackwardTiles<T, D>& tiles, const float (&lse)[2],
                                             const float (&delta)[2], unsigned seen, float scale, int warp,
                                             int lane) {
  const LaneBias bias = lane_bias(tiles.bias, warp, lane);
#pragma unroll
  for (int j = 0; j < kSide; j += 2) {
    float s[2][4] = {}, d_p[2][4] = {};
#pragma unroll
    for (int n = 0; n < D; n += 16) {
      unsigned a[4], b[4];
      load_a(a, tiles.q, 16 * warp, n, lane);  // again for each j: registers are scarce
      load_b_transposed(b, tiles.k, kSide * j, n, lane);
      multiply_add<T>(s[0], a, b[0], b[1]);
      multiply_add<T>(s[1], a, b[2], b[3]);
      load_a(a, tiles.d_out, 16 * warp, n, lane);
      load_b_transposed(b, tiles.v, kSide * j, n, lane);
      multiply_add<T>(d_p[0], a, b[0], b[1]);
      multiply_add<T>(d_p[1], a, b[2], b[3]);
    }
    unsigned d_s[4];  // an A tile: queries by keys
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      half_d_scores<kWhole>(s[i], d_p[i], d_bias, bias, lse, delta, seen, j + i, scale);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int slot = 16 * warp + 8 * r + lane / 4, column = kSide * (j + i) + 2 * (lane % 4);
        d_s[2 * i + r] = pack<T>(d_p[i][2 * r], d_p[i][2 * r + 1]);
        store_pair(&tiles.p[slot][column], pack<T>(s[i][2 * r], s[i][2 * r + 1]));
        store_pair(&tiles.d_s[slot][column], d_s[2 * i + r]);
      }
    }
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      unsigned b[4];
      load_b(b, tiles.k, kSide * j, 8 * n, lane);
      multiply_add<T>(d_q[n], d_s, b[0], b[1]);
      multiply_add<T>(d_q[n + 1], d_s, b[2], b[3]);
    }
  }
}

// Then: 16 rows, those of the warp's keys, of m' y.
template <typename T, int D>
__device__ __forceinline__ void half_keys(float (&d_x)[D / 8][4], const T (&m)[kSlots][kSlots + 8],
                                          const T (&y)[kSlots][D + 8], int warp, int lane) {
#pragma unroll
  for (int i = 0; i < kSlots; i += 16) {
    unsigned a[4], b[4];
    load_a_transposed(a, m, i, 16 * warp, lane);
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      load_b(b, y, i, 8 * n, lane);
      multiply_add<T>(d_x[n], a, b[0], b[1]);
      multiply_add<T>(d_x[n + 1], a, b[2], b[3]);
    }
  }
}

// A warp's 16 rows of a gradient go through its own rows of a tile to memory, so that whole rows are written.
template <typename T, int D>
__device__ __forceinline__ void half_store(T (&tile)[kSlots][D + 8], const float (&d_x)[D / 8][4],
                                           float factor, T* base, const int64_t (&offset)[2],
                                           const LaneSlots& slots, int warp, int lane) {
  __syncwarp();  // all lanes have read what was in these rows
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      store_pair(&tile[16 * warp + 8 * r + lane / 4][8 * n + 2 * (lane % 4)],
                 pack<T>(factor * d_x[n][2 * r], factor * d_x[n][2 * r + 1]));
  __syncwarp();
  LaneRows<T, D>::store(tile, base, offset, slots, warp, lane);
}

// d_bias of a warp: [dy + 7 - 2 w][c][dx + 7], the sums over its lanes of one dx = g - 2 t - c.
using WarpSums = float[kRowOffsets][2][kOffsets + 1];

__device__ __forceinline__ void half_d_bias(const WindowAttentionParams& p, int chunk, int head,
                                            WarpSums (&sums)[kHalfThreads / kWarp],
                                            const float (&d_bias)[kRowOffsets][2]) {
  // Lanes (g, t), (g + 2, t + 1), ... have the same dx: the first of such a row, t = 0 or g < 2, gets the
  // sum.
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int row = 0; row < kRowOffsets; ++row)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = d_bias[row][c];
#pragma unroll
      for (int step = 1; step <= 2; ++step) {
        const float other = __shfl_down_sync(kAllLanes, sum, 9 * step);
        if (g + 2 * step < kSide && t + step < 4) sum += other;
      }
      if (t == 0 || g < 2) sums[warp][row][c][g - 2 * t - c + kSide - 1] = sum;
    }
  __syncthreads();
  for (int cell = threadIdx.x; cell < kBiasCells; cell += kHalfThreads) {
    const int dy = cell / kOffsets, dx = cell % kOffsets;
    float sum = 0.f;
#pragma unroll
    for (int other = 0; other < kHalfThreads / kWarp; ++other) {
      const int row = dy - 2 * other;
      if (row < 0 || row >= kRowOffsets) continue;
      if (dx > 0) sum += sums[other][row][0][dx];             // dx + 7 is 1 .. 14 where c is 0
      if (dx < kOffsets - 1) sum += sums[other][row][1][dx];  // and 0 .. 13 where it is 1
    }
    store_d_bias(p, chunk, head, cell, sum);
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kHalfThreads, 4)
    window_attention_bwd_half_kernel(const WindowAttentionParams p, const Plan plan) {
  using Rows = LaneRows<T, D>;
  using Tiles = HalfBackwardTiles<T, D>;
  MMIF_SHARED(Tiles, tiles);
  const int head = blockIdx.x, chunk = blockIdx.y;
  float d_bias[kRowOffsets][2] = {};
  load_bias_pairs(tiles.bias, p, head);

  const int row = p.heads * D;  // elements from a token to the next, without the gap of other layouts
  const T* const qkv = static_cast<const T*>(p.qkv) + head * p.qkv_stride[4];
  const T* const d_out = static_cast<const T*>(p.d_out) + head * p.d_out_stride[3];
  const T* const out = static_cast<const T*>(p.out) + head * D;
  T* const d_qkv = static_cast<T*>(p.d_qkv) + head * D;

  Place place(plan, chunk_begin(plan, chunk));
#pragma unroll 1
  for (int left = chunk_windows(plan, chunk); left > 0; --left, place.next(plan)) {
    const int thread = renewed_thread(), warp = thread / kWarp, lane = thread % kWarp;  // saves registers
    const Window window(p, plan, place);
    const LaneSlots slots(window, warp, lane);
    const int token[2] = {slots.token(p, place.batch, 0), slots.token(p, place.batch, 1)};
    Rows::load({tiles.q, tiles.k, tiles.v}, qkv + place.batch * p.qkv_stride[0],
               {slots.offset(0, p.qkv_stride[1], p.qkv_stride[2]),
                slots.offset(1, p.qkv_stride[1], p.qkv_stride[2])},
               static_cast<int>(p.qkv_stride[3]), slots, warp, lane);
    Rows::load({tiles.d_out}, d_out + place.batch * p.d_out_stride[0],
               {slots.offset(0, p.d_out_stride[1], p.d_out_stride[2]),
                slots.offset(1, p.d_out_stride[1], p.d_out_stride[2])},
               0, slots, warp, lane);
    Rows::load({tiles.p}, out, {wide_product(token[0], row), wide_product(token[1], row)}, 0, slots, warp,
               lane);
    float lse[2], delta[2], d_q[D / 8][4] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      lse[r] =
          slots.exists[r] ? static_cast<const float*>(p.lse)[lse_index(p, place.batch, head, token[r])] : 0.f;
    wait_copies();
    __syncthreads();

    half_deltas(delta, tiles, warp, lane);
    __syncwarp();  // p may be written where out was
    if (window.whole())
      half_queries<true>(d_q, d_bias, tiles, lse, delta, 0, plan.scale, warp, lane);
    else
      half_queries<false>(d_q, d_bias, tiles, lse, delta, seen_by_lane(window, warp, lane), plan.scale, warp,
                          lane);
    __syncthreads();  // p and d_s are complete; k and v are no longer needed and take the results

    const int64_t to[2] = {wide_product(token[0], 3 * row), wide_product(token[1], 3 * row)};
    half_store<T, D>(tiles.v, d_q, plan.scale, d_qkv, to, slots, warp, lane);
    float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};
    half_keys<T, D>(d_k, tiles.d_s, tiles.q, warp, lane);
    half_store<T, D>(tiles.k, d_k, plan.scale, d_qkv + row, to, slots, warp, lane);
    half_keys<T, D>(d_v, tiles.p, tiles.d_out, warp, lane);
    half_store<T, D>(tiles.v, d_v, 1.f, d_qkv + 2 * row, to, slots, warp, lane);
    __syncthreads();  // the next window's rows may be loaded
  }
  static_assert(sizeof(tiles.d_s) >= sizeof(WarpSums) * (kHalfThreads / kWarp), "d_bias by warp fits");
  half_d_bias(p, chunk, head, *reinterpret_cast<WarpSums(*)[kHalfThreads / kWarp]>(&tiles.d_s), d_bias);
}

// ---- d_bias over chunks -------------------------------------------------------------------------
//
// 32 cells per block; thread (cell, y) sums the chunks y, y + 32, ..., then y = 0 sums the 32. Reads are
// adjacent, and most are in flight at once; the writes, cell-major, are few.

constexpr int kSumRows = 32;

__global__ void __launch_bounds__(kWarp* kSumRows)
    window_attention_d_bias_kernel(const float* partial, int chunks, int heads, int cells,
                                   float* d_bias_table) {
  using Sums = float[kSumRows][kWarp];
  MMIF_SHARED(Sums, sums);
  const int all = heads * cells, at = blockIdx.x * kWarp + threadIdx.x;  // head-major, as a partial table is
  float sum = 0.f;
  if (at < all) {
#pragma unroll 8
    for (int chunk = threadIdx.y; chunk < chunks; chunk += kSumRows)
      sum += partial[static_cast<int64_t>(chunk) * all + at];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && at < all) {
#pragma unroll
    for (int y = 1; y < kSumRows; ++y) sum += sums[y][threadIdx.x];
    d_bias_table[at % cells * heads + at / cells] = sum;
  }
}

template <typename T>
cudaError_t launch_by_head_dim(const WindowAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.chunks));
  const Plan shares = plan(p);
  if (p.head_dim == 16)
    return launch(window_attention_bwd_half_kernel<T, 16>, grid, kHalfThreads, 0, stream, p, shares);
  if (p.head_dim == 32)
    return launch(window_attention_bwd_half_kernel<T, 32>, grid, kHalfThreads, 0, stream, p, shares);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t window_attention_bwd_launch(const WindowAttentionParams& p, cudaStream_t stream) {
  if (window_count(p) * p.heads == 0) return cudaSuccess;
  if (!launchable(p)) return cudaErrorInvalidValue;
  switch (p.dtype) {
    case DType::kFloat:
      return window_attention_bwd_float_launch(p, stream);
    case DType::kHalf:
      return launch_by_head_dim<__half>(p, stream);
    case DType::kBFloat16:
      return launch_by_head_dim<__nv_bfloat16>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t window_attention_d_bias_launch(const WindowAttentionParams& p, float* d_bias_table,
                                           cudaStream_t stream) {
  const int cells = (2 * p.window - 1) * (2 * p.window - 1);
  const unsigned blocks = static_cast<unsigned>(ceil_div(p.heads * cells, kWarp));
  return launch(window_attention_d_bias_kernel, blocks, dim3(kWarp, kSumRows), 0, stream,
                static_cast<const float*>(p.d_bias_partial), static_cast<int>(p.chunks), p.heads, cells,
                d_bias_table);
}

bool window_attention_loads() { return loads(window_attention_d_bias_kernel); }

}  // namespace mmif
