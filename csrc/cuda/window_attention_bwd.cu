// Window attention, backward: one block per head and chunk of windows, which it takes one after another; d_bias
// is summed in registers over the chunk, so its partial tables are small and the order of every sum is fixed.
//
// Forward saved lse, from which the weights come again: p[i, j] = exp(s[i, j] - lse_i). Then
//
//     d_v_j     = sum_i p[i, j] d_out_i
//     delta_i   = sum_j p[i, j] (d_out_i . v_j) = d_out_i . out_i
//     d_s[i, j] = p[i, j] (d_out_i . v_j - delta_i)
//     d_q_i     = scale sum_j d_s[i, j] k_j
//     d_k_j     = scale sum_i d_s[i, j] q_i
//     d_bias[o] = sum of d_s[i, j] over i - j = o
//
// What moves: q, k, v, out, d_out and lse once in, d_q, d_k, d_v once out.
// Where i does not see j, p and d_s are set to 0, not computed to be 0.
#include "window_attention.cuh"

namespace mmif {
namespace {

// ---- 16-bit types: tensor cores -----------------------------------------------------------------
//
// Four warps, lanes placed as in forward. First a warp takes its 16 queries and all keys: p and d_s, which
// are left in shared memory, rounded to T. Then a warp makes 16 rows of each gradient from them: d_q = d_s k,
// and with the roles turned d_k = d_s' q, d_v = p' d_out.

constexpr int kHalfThreads = 128;
constexpr int kRowOffsets = kSide + 1;  // dy + 7 - 2 w that a warp meets

template <typename T, int D>
struct alignas(16) HalfBackwardTiles {
  T q[kSlots][D + 8], k[kSlots][D + 8], v[kSlots][D + 8], d_out[kSlots][D + 8];
  T p[kSlots][kSlots + 8];    // before p is known: out
  T d_s[kSlots][kSlots + 8];  // after the last window: d_bias by lane
  float bias[kBiasCells];
};

// What a lane has of its two queries (2 w + r, g).
struct HalfRows {
  float lse[2];
  unsigned seen;  // whether row r sees key (j, 2 t + c): bit 16 r + 8 c + j
  int cell;       // of the bias at r = 0, key (0, 2 t)
};

__device__ __forceinline__ HalfRows half_rows(const WindowAttentionParams& p, const Window& window, int head,
                                              int warp, int lane) {
  const int g = lane / 4, t = lane % 4;
  HalfRows rows;
  rows.seen = 0;
  const unsigned seen_x = window.x.seen_by(g) >> 2 * t;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows.lse[r] = lse_of(p, window, head, 16 * warp + 8 * r + g);
    const unsigned seen_y = window.y.seen_by(2 * warp + r);
    rows.seen |= ((seen_x & 1 ? seen_y : 0) | (seen_x & 2 ? seen_y << 8 : 0)) << 16 * r;
  }
  rows.cell = (2 * warp + kSide - 1) * kOffsets + g - 2 * t + kSide - 1;
  return rows;
}

// delta of the lane's two rows; four lanes share a row. out lies where p will: in this warp's rows, which no
// other warp writes.
template <typename T, int D>
__device__ __forceinline__ void half_deltas(float (&delta)[2], const HalfBackwardTiles<T, D>& tiles, int warp,
                                            int lane) {
  delta[0] = delta[1] = 0.f;
#pragma unroll
  for (int n = 0; n < D; n += 16) {
    unsigned a[4], b[4];
    load_a(a, tiles.d_out, 16 * warp, n, lane);
    load_a(b, tiles.p, 16 * warp, n, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = unpack<T>(a[i]), y = unpack<T>(b[i]);
      delta[i % 2] = fmaf(x.y, y.y, fmaf(x.x, y.x, delta[i % 2]));
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    delta[r] += __shfl_xor_sync(kAllLanes, delta[r], 1);
    delta[r] += __shfl_xor_sync(kAllLanes, delta[r], 2);
  }
}

// s, d_p of the key row j to p, d_s in place.
__device__ __forceinline__ void half_d_scores(float (&s)[4], float (&d_p)[4], float (&d_bias)[kRowOffsets][2],
                                              const float (&bias)[kBiasCells], const HalfRows& rows,
                                              const float (&delta)[2], int j, float scale) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int i = 2 * r + c;
      const bool seen = rows.seen >> (16 * r + 8 * c + j) & 1;
      const float x = fmaf(s[i], scale, bias[rows.cell + (r - j) * kOffsets - c]);
      s[i] = seen ? fast_exp(x - rows.lse[r]) : 0.f;
      d_p[i] = seen ? s[i] * (d_p[i] - delta[r]) : 0.f;
      d_bias[r - j + kSide - 1][c] += d_p[i];
    }
}

// First: p and d_s to shared memory, d_bias to registers.
template <typename T, int D>
__device__ __forceinline__ void half_queries(float (&d_bias)[kRowOffsets][2], HalfBackwardTiles<T, D>& tiles,
                                             const HalfRows& rows, float scale, int warp, int lane) {
  float delta[2];
  half_deltas(delta, tiles, warp, lane);
#pragma unroll
  for (int j = 0; j < kSide; j += 2) {
    float s[2][4] = {}, d_p[2][4] = {};
#pragma unroll
    for (int n = 0; n < D; n += 16) {
      unsigned a[4], b[4];
      load_a(a, tiles.q, 16 * warp, n, lane);  // again for each j: registers are short
      load_b_transposed(b, tiles.k, kSide * j, n, lane);
      multiply_add<T>(s[0], a, b[0], b[1]);
      multiply_add<T>(s[1], a, b[2], b[3]);
      load_a(a, tiles.d_out, 16 * warp, n, lane);
      load_b_transposed(b, tiles.v, kSide * j, n, lane);
      multiply_add<T>(d_p[0], a, b[0], b[1]);
      multiply_add<T>(d_p[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      half_d_scores(s[i], d_p[i], d_bias, tiles.bias, rows, delta, j + i, scale);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int slot = 16 * warp + 8 * r + lane / 4, column = kSide * (j + i) + 2 * (lane % 4);
        store_pair(&tiles.p[slot][column], s[i][2 * r], s[i][2 * r + 1]);
        store_pair(&tiles.d_s[slot][column], d_p[i][2 * r], d_p[i][2 * r + 1]);
      }
    }
  }
}

// Then: 16 rows of a gradient, d_x = m y or m' y, which go through the warp's own rows of a tile to memory,
// so that whole rows are written.
template <bool kTransposed, typename T, int D>
__device__ __forceinline__ void half_gradient(const T (&m)[kSlots][kSlots + 8], const T (&y)[kSlots][D],
                                              T (&tile)[kSlots][D], float factor, T* base,
                                              const WindowAttentionParams& p, const Window& window, int warp,
                                              int lane) {
  constexpr int kColumns = D - 8;  // less the padding
  float d_x[kColumns / 8][4] = {};
#pragma unroll
  for (int i = 0; i < kSlots; i += 16) {
    unsigned a[4], b[4];
    if (kTransposed)
      load_a_transposed(a, m, i, 16 * warp, lane);
    else
      load_a(a, m, 16 * warp, i, lane);
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      load_b(b, y, i, 8 * n, lane);
      multiply_add<T>(d_x[n], a, b[0], b[1]);
      multiply_add<T>(d_x[n + 1], a, b[2], b[3]);
    }
  }
  __syncwarp();  // the gradient before may still be on its way out of the tile
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
      store_pair(&tile[16 * warp + 8 * r + lane / 4][8 * n + 2 * (lane % 4)], factor * d_x[n][2 * r],
                 factor * d_x[n][2 * r + 1]);
  __syncwarp();
  Rows<T, kColumns, kHalfThreads>::store(tile, base, static_cast<int64_t>(3) * p.heads * kColumns, p, window,
                                         16 * warp, 16, lane, kWarp);
}

// Sums what the lanes have of d_bias: lane (w, g, t) has dy + 7 = 2 w + row, dx = g - 2 t - c.
__device__ __forceinline__ void half_d_bias(const WindowAttentionParams& p, int chunk, int head,
                                            float (&lanes)[kHalfThreads][kRowOffsets][2],
                                            const float (&d_bias)[kRowOffsets][2]) {
#pragma unroll
  for (int row = 0; row < kRowOffsets; ++row)
#pragma unroll
    for (int c = 0; c < 2; ++c) lanes[threadIdx.x][row][c] = d_bias[row][c];
  __syncthreads();
  for (int cell = threadIdx.x; cell < kBiasCells; cell += kHalfThreads) {
    float sum = 0.f;
    for (int warp = 0; warp < kHalfThreads / kWarp; ++warp) {
      const int row = cell / kOffsets - 2 * warp;
      if (row < 0 || row >= kRowOffsets) continue;
      for (int x = 0; x < kSide; ++x) {  // the key's, 2 t + c
        const int g = cell % kOffsets - (kSide - 1) + x;
        if (g >= 0 && g < kSide) sum += lanes[kWarp * warp + 4 * g + x / 2][row][x % 2];
      }
    }
    store_d_bias(p, chunk, head, cell, sum);
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kHalfThreads, 4)
    window_attention_bwd_half_kernel(const WindowAttentionParams p, const Plan plan) {
  using TileRows = Rows<T, D, kHalfThreads>;
  using Tiles = HalfBackwardTiles<T, D>;
  MMIF_SHARED(Tiles, tiles);
  const int head = blockIdx.x % p.heads;
  const int chunk = blockIdx.x / p.heads, end = chunk_begin(p, plan.windows, chunk + 1);
  const int64_t out_stride[3] = {p.height * p.width * p.heads * D, p.width * p.heads * D,
                                 static_cast<int64_t>(p.heads) * D};
  load_bias<kHalfThreads>(tiles.bias, p, head);

  float d_bias[kRowOffsets][2] = {};
#pragma unroll 1
  for (int number = chunk_begin(p, plan.windows, chunk); number < end; ++number) {
    const Window window(p, plan, number);
    TileRows::load_qkv(tiles.q, tiles.k, tiles.v, p, head, window, plan.aligned);
    TileRows::load(tiles.d_out, static_cast<const T*>(p.d_out) + head * p.d_out_stride[3], p.d_out_stride,
                   window, plan.aligned);
    TileRows::load(tiles.p, static_cast<const T*>(p.out) + head * D, out_stride, window, true);
    const int thread = renewed(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const HalfRows rows = half_rows(p, window, head, warp, lane);
    wait_copies();
    __syncthreads();

    const float scale = static_cast<float>(p.scale);
    T* d_base = static_cast<T*>(p.d_qkv) + head * D;
    const int64_t part = static_cast<int64_t>(p.heads) * D;
    half_queries(d_bias, tiles, rows, scale, warp, lane);
    __syncthreads();  // p and d_s are whole; v is done with, and takes the results in turn
    const Window again(p, plan, renewed(number));
    half_gradient<false>(tiles.d_s, tiles.k, tiles.v, scale, d_base, p, again, warp, lane);
    half_gradient<true>(tiles.d_s, tiles.q, tiles.v, scale, d_base + part, p, again, warp, lane);
    half_gradient<true>(tiles.p, tiles.d_out, tiles.v, 1.f, d_base + 2 * part, p, again, warp, lane);
    __syncthreads();  // the next window's rows may come
  }
  static_assert(sizeof(tiles.d_s) >= sizeof(float) * kHalfThreads * kRowOffsets * 2, "d_bias by lane fits");
  half_d_bias(p, chunk, head, *reinterpret_cast<float (*)[kHalfThreads][kRowOffsets][2]>(&tiles.d_s), d_bias);
}

// ---- d_bias over chunks -------------------------------------------------------------------------
//
// Eight chunks at a
// time, 32 cells per block; thread (cell, y) sums the chunks y, y + 8, ..., then y = 0 sums the eight. Reads
// lie side by side; the writes, cell-major, are few.

constexpr int kSumRows = 8;

__global__ void __launch_bounds__(kWarp* kSumRows)
    window_attention_d_bias_kernel(const float* partial, int64_t chunks, int heads, int cells,
                                   float* d_bias_table) {
  using Sums = float[kSumRows][kWarp];
  MMIF_SHARED(Sums, sums);
  const int all = heads * cells, at = blockIdx.x * kWarp + threadIdx.x;  // head-major, as a partial table is
  float sum = 0.f;
  if (at < all) {
#pragma unroll 8
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += kSumRows) sum += partial[chunk * all + at];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && at < all) {
    for (int y = 1; y < kSumRows; ++y) sum += sums[y][threadIdx.x];
    d_bias_table[static_cast<int64_t>(at % cells) * heads + at / cells] = sum;
  }
}

template <typename T>
cudaError_t launch_by_head_dim(const WindowAttentionParams& p, unsigned blocks, cudaStream_t stream) {
  if (p.head_dim == 16)
    return launch(window_attention_bwd_half_kernel<T, 16>, blocks, kHalfThreads, 0, stream, p, plan(p));
  if (p.head_dim == 32)
    return launch(window_attention_bwd_half_kernel<T, 32>, blocks, kHalfThreads, 0, stream, p, plan(p));
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t window_attention_bwd_launch(const WindowAttentionParams& p, cudaStream_t stream) {
  const int64_t windows = window_count(p);
  if (windows * p.heads == 0) return cudaSuccess;
  if (p.chunks < 1 || p.chunks > windows || !launchable(p, p.chunks)) return cudaErrorInvalidValue;
  const unsigned blocks = static_cast<unsigned>(p.chunks * p.heads);
  switch (p.dtype) {
    case DType::kFloat:
      return window_attention_bwd_float_launch(p, blocks, stream);
    case DType::kHalf:
      return launch_by_head_dim<__half>(p, blocks, stream);
    case DType::kBFloat16:
      return launch_by_head_dim<__nv_bfloat16>(p, blocks, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t window_attention_d_bias_launch(const WindowAttentionParams& p, float* d_bias_table,
                                           cudaStream_t stream) {
  const int cells = (2 * p.window - 1) * (2 * p.window - 1);
  const unsigned blocks = static_cast<unsigned>(ceil_div(p.heads * cells, kWarp));
  return launch(window_attention_d_bias_kernel, blocks, dim3(kWarp, kSumRows), 0, stream,
                static_cast<const float*>(p.d_bias_partial), p.chunks, p.heads, cells, d_bias_table);
}

bool window_attention_loads() { return loads(window_attention_d_bias_kernel); }

}  // namespace mmif
