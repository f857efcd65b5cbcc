// Window attention, backward in float32: plain multiply-adds. window_attention_bwd.cu has the formulas.
//
// Four warps per window, in two passes. Operands are broadcast, one vector to all lanes of a warp:
//
//   queries  A lane has one query, its q, d_out and d_q in registers. Warps 0 and 1 take the window's keys
//            0..31, warps 2 and 3 the keys 32..63. Each k vector that is read serves s and d_q, each v vector
//            d_p. p and d_s go to shared memory.
//   keys     Warps 0 and 1 compute d_v = p' d_out, warps 2 and 3 d_k = d_s' q, each half of the D columns. A
//            lane has two keys (l and l + 32), and each vector that is read serves both.
//
// Five products of 64 x 64 x D, none computed twice.
#include "window_attention.cuh"

namespace mmif {
namespace {

constexpr int kThreads = 128;
constexpr int kHalf = kSlots / 2;

template <int D>
struct alignas(16) FloatBackwardTiles {
  // Later q takes d_q, k the other half's d_q, v d_k, d_out d_v. + 4: as in forward.
  float q[kSlots][D + 4], k[kSlots][D + 4], v[kSlots][D + 4], d_out[kSlots][D + 4];
  union {
    float p[kSlots][kSlots + 1];  // + 1: lanes on one column meet different banks
    float out[kSlots][D + 4];     // before p is known
  };
  float d_s[kSlots][kSlots + 1];
  float bias[kBiasCells];
  float d_bias[kBiasCells];  // a thread's cells are its own; here to save registers
};

__device__ __forceinline__ float4 vector(const float* row, int d) {
  return *reinterpret_cast<const float4*>(row + d);
}
__device__ __forceinline__ void set_vector(float* row, int d, float4 x) {
  *reinterpret_cast<float4*>(row + d) = x;
}
// sum += a . b; sum += a b
__device__ __forceinline__ void add_dot(float& sum, const float* a, float4 b) {
  sum = fmaf(a[3], b.w, fmaf(a[2], b.z, fmaf(a[1], b.y, fmaf(a[0], b.x, sum))));
}
__device__ __forceinline__ void add_scaled(float* sum, float a, float4 b) {
  sum[0] = fmaf(a, b.x, sum[0]);
  sum[1] = fmaf(a, b.y, sum[1]);
  sum[2] = fmaf(a, b.z, sum[2]);
  sum[3] = fmaf(a, b.w, sum[3]);
}

// First pass, for the query `slot` and 32 keys from `first` on. Returns with d_q of those keys, not scaled.
template <int D>
__device__ __forceinline__ void float_query(float (&d_q)[D], FloatBackwardTiles<D>& tiles,
                                            const Window& window, float lse, float scale, int slot,
                                            int first) {
  float q[D], d_out[D], delta = 0.f;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    q[d] = tiles.q[slot][d];
    d_out[d] = tiles.d_out[slot][d];
    d_q[d] = 0.f;
  }
#pragma unroll
  for (int d = 0; d < D; d += 4) add_dot(delta, d_out + d, vector(tiles.out[slot], d));
  __syncthreads();  // p may be written where out was

  const int y = slot / kSide, x = slot % kSide;
  const unsigned seen_y = window.y.seen_by(y), seen_x = window.x.seen_by(x);
#pragma unroll 1
  for (int key = first; key < first + kHalf; ++key) {
    float s = 0.f, d_p = 0.f;
#pragma unroll
    for (int d = 0; d < D; d += 4) {
      add_dot(s, q + d, vector(tiles.k[key], d));
      add_dot(d_p, d_out + d, vector(tiles.v[key], d));
    }
    const int i = key / kSide, j = key % kSide;
    const bool seen = (seen_y >> i & 1) && (seen_x >> j & 1);
    const float b = tiles.bias[(y - i + kSide - 1) * kOffsets + x - j + kSide - 1];
    const float weight = seen ? fast_exp(fmaf(s, scale, b) - lse) : 0.f;
    const float d_s = seen ? weight * (d_p - delta) : 0.f;
    tiles.p[slot][key] = weight;
    tiles.d_s[slot][key] = d_s;
#pragma unroll
    for (int d = 0; d < D; d += 4) add_scaled(d_q + d, d_s, vector(tiles.k[key], d));
  }
}

// Second pass: half of the columns, from `column` on, of m' y for the keys lane and lane + 32.
template <int D>
__device__ __forceinline__ void float_keys(float (&d_x)[2][D / 2], const float (&m)[kSlots][kSlots + 1],
                                           const float (&y)[kSlots][D + 4], int column, int lane) {
#pragma unroll 2
  for (int i = 0; i < kSlots; ++i) {
    const float a = m[i][lane], b = m[i][lane + kHalf];
#pragma unroll
    for (int d = 0; d < D / 2; d += 4) {
      const float4 row = vector(y[i] + column, d);
      add_scaled(d_x[0] + d, a, row);
      add_scaled(d_x[1] + d, b, row);
    }
  }
}

// d_s of all pairs that are `cell` apart, in slot order.
__device__ __forceinline__ float sum_of_offset(const float (&d_s)[kSlots][kSlots + 1], int cell) {
  const int dy = cell / kOffsets - (kSide - 1), dx = cell % kOffsets - (kSide - 1);
  float sum = 0.f;
  for (int y = (dy < 0 ? -dy : 0); y < kSide && y < kSide - dy; ++y)
    for (int x = (dx < 0 ? -dx : 0); x < kSide && x < kSide - dx; ++x)
      sum += d_s[kSide * (y + dy) + x + dx][kSide * y + x];
  return sum;
}

// Both passes over a window whose tiles are loaded; leaves d_q, d_k, d_v in the tiles q, v, d_out.
template <int D>
__device__ __forceinline__ void float_window(FloatBackwardTiles<D>& tiles, const Window& window, float lse,
                                             float scale) {
  const int thread = renewed_thread(), warp = thread / kWarp, lane = thread % kWarp;
  const int half = warp / 2, slot = kHalf * (warp % 2) + lane;
  float d_q[D];
  float_query(d_q, tiles, window, lse, scale, slot, kHalf * half);
  __syncthreads();  // p and d_s are complete; k and v are no longer needed

  if (half == 1)
#pragma unroll
    for (int d = 0; d < D; d += 4)
      set_vector(tiles.k[slot], d, make_float4(d_q[d], d_q[d + 1], d_q[d + 2], d_q[d + 3]));
  float d_x[2][D / 2] = {};
  const int column = D / 2 * (warp % 2);
  if (half == 0)
    float_keys<D>(d_x, tiles.p, tiles.d_out, column, lane);
  else
    float_keys<D>(d_x, tiles.d_s, tiles.q, column, lane);
  for (int cell = thread; cell < kBiasCells; cell += kThreads)
    tiles.d_bias[cell] += sum_of_offset(tiles.d_s, cell);
  __syncthreads();  // q and d_out are no longer needed; the other half's d_q is complete

  const float factor = half == 0 ? 1.f : scale;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int d = 0; d < D / 2; d += 4)
      set_vector((half == 0 ? tiles.d_out : tiles.v)[lane + kHalf * i] + column, d,
                 make_float4(factor * d_x[i][d], factor * d_x[i][d + 1], factor * d_x[i][d + 2],
                             factor * d_x[i][d + 3]));
  if (half == 0)
#pragma unroll
    for (int d = 0; d < D; d += 4) {
      const float4 other = vector(tiles.k[slot], d);
      set_vector(tiles.q[slot], d,
                 make_float4(scale * (d_q[d] + other.x), scale * (d_q[d + 1] + other.y),
                             scale * (d_q[d + 2] + other.z), scale * (d_q[d + 3] + other.w)));
    }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 3)
    window_attention_bwd_float_kernel(const WindowAttentionParams p, const Plan plan) {
  using TileRows = Rows<float, D, kThreads>;
  MMIF_SHARED_DYNAMIC(FloatBackwardTiles<D>, tiles);
  const int head = blockIdx.x, chunk = blockIdx.y;
  const int row = p.heads * D;
  const int64_t out_stride[3] = {p.height * p.width * row, p.width * row, row};
  load_bias<kThreads>(tiles.bias, p, head);

  for (int cell = threadIdx.x; cell < kBiasCells; cell += kThreads) tiles.d_bias[cell] = 0.f;
  Place place(plan, chunk_begin(plan, chunk));
#pragma unroll 1
  for (int left = chunk_windows(plan, chunk); left > 0; --left, place.next(plan)) {
    const Window window(p, plan, place);
    const int thread = renewed_thread();
    TileRows::load_qkv(tiles.q, tiles.k, tiles.v, p, head, window, thread);
    TileRows::load(tiles.d_out, static_cast<const float*>(p.d_out) + head * p.d_out_stride[3], p.d_out_stride,
                   window, thread);
    TileRows::load(tiles.out, static_cast<const float*>(p.out) + head * D, out_stride, window, thread);
    const float lse = lse_of(p, window, head, thread % kSlots);
    wait_copies();
    __syncthreads();
    float_window(tiles, window, lse, plan.scale);
    __syncthreads();
    const int same = renewed_thread();
    const Window again(p, plan, {place.batch, renewed(place.y), renewed(place.x)});
    float* d_base = static_cast<float*>(p.d_qkv) + head * D;
    TileRows::store(tiles.q, d_base, 3 * row, p, again, same);
    TileRows::store(tiles.v, d_base + row, 3 * row, p, again, same);
    TileRows::store(tiles.d_out, d_base + 2 * row, 3 * row, p, again, same);
    __syncthreads();  // the next window's rows may be loaded
  }
  for (int cell = threadIdx.x; cell < kBiasCells; cell += kThreads)
    store_d_bias(p, chunk, head, cell, tiles.d_bias[cell]);
}

template <int D>
cudaError_t launch_float(const WindowAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.chunks));
  return launch(window_attention_bwd_float_kernel<D>, grid, kThreads, sizeof(FloatBackwardTiles<D>), stream,
                p, plan(p));
}

}  // namespace

cudaError_t window_attention_bwd_float_launch(const WindowAttentionParams& p, cudaStream_t stream) {
  return p.head_dim == 16   ? launch_float<16>(p, stream)
         : p.head_dim == 32 ? launch_float<32>(p, stream)
                            : cudaErrorInvalidValue;
}

}  // namespace mmif
