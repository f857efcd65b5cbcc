// Window attention on CUDA: what forward and backward share. window_attention.cpp calls the launchers.
//
// Windows are those of the cyclic form: the map, padded to whole windows, is rolled by -shift and cut at
// multiples of the window. Slot (i, j) of the rolled window (wy, wx) is the token
//     y = wy window + i + shift, less the padded height where that is reached ("wrapped"); x alike,
// and exists if i, j < window and the token lies in the image. Two slots see each other if both exist and
// agree in what is wrapped: exactly the plane cut at shift + k window, with the pieces of opposite borders in
// one block. Nothing is rolled in memory; it is all in the addresses, and what does not exist is never
// touched.
//
// A window is processed as 8 x 8 slots, whatever its size: slot s = 8 i + j. Tokens of different pieces share
// matrix products, with weight 0 for each other, so a NaN or infinity spreads to all pieces of its block.
#pragma once
#include "mma.cuh"
#include "window_attention_launch.h"

namespace mmif {

constexpr int kSide = 8;                         // slots of a window along an axis
constexpr int kSlots = kSide * kSide;            // tokens of a window
constexpr int kOffsets = 2 * kSide - 1;          // differences of two slots along an axis
constexpr int kBiasCells = kOffsets * kOffsets;  // of the bias table in shared memory

// How the map is cut and distributed. The host divides, so that no thread has to; constants cost no
// registers.
struct Plan {
  int down, across;  // windows of an image
  int share, extra;  // a chunk takes `share` windows, and each of the first `extra` chunks one more
  float scale;
};

// The float32 part, in window_attention_bwd_float.cu.
cudaError_t window_attention_bwd_float_launch(const WindowAttentionParams& p, cudaStream_t stream);

inline Plan plan(const WindowAttentionParams& p) {
  const int64_t windows = window_count(p);
  return {static_cast<int>(ceil_div<int64_t>(p.height, p.window)),
          static_cast<int>(ceil_div<int64_t>(p.width, p.window)), static_cast<int>(windows / p.chunks),
          static_cast<int>(windows % p.chunks), static_cast<float>(p.scale)};
}

// Every head's row of q, k, v, out and d_out begins at a multiple of 16 bytes, as vector loads need.
inline bool aligned(const WindowAttentionParams& p) {
  const int element_bytes = p.dtype == DType::kFloat ? 4 : 2;
  uintptr_t all = reinterpret_cast<uintptr_t>(p.qkv) | reinterpret_cast<uintptr_t>(p.d_out) |
                  reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.d_qkv);
  for (int64_t stride : p.qkv_stride) all |= static_cast<uintptr_t>(stride * element_bytes);
  for (int64_t stride : p.d_out_stride) all |= static_cast<uintptr_t>(stride * element_bytes);
  return all % 16 == 0;
}

// The grid is heads x chunks. Windows, tokens and heads, and all strides but the batch's, are 32-bit numbers.
inline bool launchable(const WindowAttentionParams& p) {
  constexpr int64_t kMost = 1 << 30;
  for (int i = 1; i < 5; ++i)
    if (p.qkv_stride[i] >= kMost) return false;
  for (int i = 1; i < 4; ++i)
    if (p.d_out_stride[i] >= kMost) return false;
  return p.window >= 1 && p.window <= kSide && p.height < kMost && p.width < kMost &&
         3 * p.width * p.heads * p.head_dim < kMost && p.batch * p.heads * p.height * p.width < kMost &&
         window_count(p) < kMost && p.chunks >= 1 && p.chunks <= window_count(p) && p.chunks <= 65535 &&
         aligned(p);
}

// One axis of one window. Bit i of a set stands for slot i.
struct Axis {
  int begin;         // coordinate of slot 0
  int padded;        // subtracted from a wrapped slot's coordinate
  unsigned direct;   // slots that exist and are not wrapped
  unsigned wrapped;  // slots that exist and are

  __device__ Axis(int index, int windows, int window, int shift, int length)
      : begin(index * window + shift),
        padded(windows * window),
        direct(first(smaller(window, length - begin))),
        wrapped(first(smaller(window, padded - begin + length)) & ~first(smaller(window, padded - begin))) {}
  // The first n slots; none for a negative n.
  static __device__ unsigned first(int n) { return n < 0 ? 0u : (1u << n) - 1; }
  __device__ int token(int i) const { return begin + i - (begin + i >= padded ? padded : 0); }
  __device__ bool exists(int i) const { return (direct | wrapped) >> i & 1; }
  // The slots that slot i sees; none if it does not exist.
  __device__ unsigned seen_by(int i) const {
    return direct >> i & 1 ? direct : wrapped >> i & 1 ? wrapped : 0;
  }
};

// A window by its numbers across, down and over the batch; next() is the one that follows in this order.
struct Place {
  int batch, y, x;

  __device__ Place(int batch, int y, int x) : batch(batch), y(y), x(x) {}
  __device__ Place(const Plan& plan, int number)
      : batch(number / plan.across / plan.down),
        y(number / plan.across - batch * plan.down),
        x(number % plan.across) {}
  __device__ void next(const Plan& plan) {
    if (++x < plan.across) return;
    x = 0;
    if (++y < plan.down) return;
    y = 0, ++batch;
  }
};

struct Window {
  int batch;
  Axis y, x;

  __device__ Window(const WindowAttentionParams& p, const Plan& plan, const Place& place)
      : batch(place.batch),
        y(place.y, plan.down, p.window, p.shift, static_cast<int>(p.height)),
        x(place.x, plan.across, p.window, p.shift, static_cast<int>(p.width)) {}
  // All 64 slots exist and see each other.
  __device__ bool whole() const { return y.direct == 0xff && x.direct == 0xff; }
  __device__ bool exists(int slot) const { return y.exists(slot / kSide) && x.exists(slot % kSide); }
  // The row of the slot's token in a [B, H, W, ...] array.
  __device__ int token(const WindowAttentionParams& p, int slot) const {
    return (batch * static_cast<int>(p.height) + y.token(slot / kSide)) * static_cast<int>(p.width) +
           x.token(slot % kSide);
  }
  // Its place in an array with these strides of B, H, W.
  __device__ int64_t offset(const int64_t* stride, int slot) const {
    return batch * stride[0] + static_cast<int64_t>(y.token(slot / kSide)) * static_cast<int>(stride[1]) +
           static_cast<int64_t>(x.token(slot % kSide)) * static_cast<int>(stride[2]);
  }
  __device__ int lse_index(const WindowAttentionParams& p, int head, int slot) const {
    return ((batch * p.heads + head) * static_cast<int>(p.height) + y.token(slot / kSide)) *
               static_cast<int>(p.width) +
           x.token(slot % kSide);
  }
};

__device__ __forceinline__ int chunk_begin(const Plan& plan, int chunk) {
  return chunk * plan.share + smaller(chunk, plan.extra);
}
__device__ __forceinline__ int chunk_windows(const Plan& plan, int chunk) {
  return plan.share + (chunk < plan.extra ? 1 : 0);
}

// A head's bias in 8 x 8 geometry, cell (dy + 7) 15 + dx + 7. Cells that the window does not
// have belong to pairs that do not see each other.
template <int kThreads>
__device__ inline void load_bias(float (&bias)[kBiasCells], const WindowAttentionParams& p, int head) {
  const float* table = static_cast<const float*>(p.bias_table);
  for (int i = threadIdx.x; i < kBiasCells; i += kThreads) {
    const int dy = i / kOffsets - kSide + p.window, dx = i % kOffsets - kSide + p.window;
    const int side = 2 * p.window - 1;
    const bool has = dy >= 0 && dy < side && dx >= 0 && dx < side;
    bias[i] = has ? table[static_cast<int64_t>(dy * side + dx) * p.heads + head] : 0.f;
  }
}

// Moves rows of D elements, one per slot, to or from tiles in shared memory; each thread takes 16 bytes at a
// time, and neighbouring threads neighbouring bytes.
template <typename T, int D, int kThreads>
struct Rows {
  static constexpr int kPerVector = 16 / sizeof(T);
  static constexpr int kVectors = D / kPerVector;  // of a row

  // Starts to fill tiles: q, k, v of a head, or one tile from `base` by the strides of B, H, W. Rows that do
  // not exist become zeros. Complete after wait_copies() and a barrier. Not unrolled: the copies are under
  // way while the next addresses are computed, and the addresses of all would fill the registers.
  template <int kStride, int kVStride>
  static __device__ __forceinline__ void load_qkv(T (&q)[kSlots][kStride], T (&k)[kSlots][kVStride],
                                                  T (&v)[kSlots][kVStride], const WindowAttentionParams& p,
                                                  int head, const Window& window, int thread) {
    const T* base = static_cast<const T*>(p.qkv) + head * p.qkv_stride[4];
#pragma unroll 1
    for (int i = thread; i < kSlots * kVectors; i += kThreads) {
      const int slot = i / kVectors, column = i % kVectors * kPerVector;
      const bool exists = window.exists(slot);
      const T* from = base + (exists ? window.offset(p.qkv_stride, slot) + column : 0);
      copy_16_bytes(&q[slot][column], from, exists);
      copy_16_bytes(&k[slot][column], from + p.qkv_stride[3], exists);
      copy_16_bytes(&v[slot][column], from + 2 * p.qkv_stride[3], exists);
    }
  }

  template <int kStride>
  static __device__ __forceinline__ void load(T (&tile)[kSlots][kStride], const T* base,
                                              const int64_t* stride, const Window& window, int thread) {
#pragma unroll 1
    for (int i = thread; i < kSlots * kVectors; i += kThreads) {
      const int slot = i / kVectors, column = i % kVectors * kPerVector;
      const bool exists = window.exists(slot);
      copy_16_bytes(&tile[slot][column], base + (exists ? window.offset(stride, slot) + column : 0), exists);
    }
  }

  // Writes the tile's rows to base + token * stride.
  template <int kStride>
  static __device__ __forceinline__ void store(const T (&tile)[kSlots][kStride], T* base, int stride,
                                               const WindowAttentionParams& p, const Window& window,
                                               int thread) {
#pragma unroll 1
    for (int i = thread; i < kSlots * kVectors; i += kThreads) {
      const int slot = i / kVectors, column = i % kVectors * kPerVector;
      if (window.exists(slot))
        *reinterpret_cast<uint4*>(base + (wide_product(window.token(p, slot), stride) + column)) =
            *reinterpret_cast<const uint4*>(&tile[slot][column]);
    }
  }
};

// ---- 16-bit types: who has which slots ----------------------------------------------------------
//
// Four warps; lane 4 g + t of warp w has the slots (2 w + r, g), r = 0, 1, as the products lay them out. It
// also copies of their rows what it takes 16 bytes at a time: vector t of both slots where D is 32, vector
// t % 2 of slot t / 2 where D is 16. So the places of its tokens are worked out once, for everything.

constexpr int kHalfThreads = 128;
constexpr int kRowOffsets = kSide + 1;  // of dy + 7 - 2 w that a warp meets

struct LaneSlots {
  int y[2], x;  // of the tokens
  bool exists[2];

  __device__ __forceinline__ LaneSlots(const Window& window, int warp, int lane)
      : x(window.x.token(lane / 4)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      y[r] = window.y.token(2 * warp + r);
      exists[r] = window.y.exists(2 * warp + r) && window.x.exists(lane / 4);
    }
  }
  // Where it is in an image of these strides.
  __device__ __forceinline__ int64_t offset(int r, int64_t down, int64_t across) const {
    return wide_product(y[r], static_cast<int>(down)) + wide_product(x, static_cast<int>(across));
  }
  // Row of the token in a [B, H, W, ...] array. Passed through renewed(): these two numbers are to be kept,
  // not what they come from.
  __device__ __forceinline__ int token(const WindowAttentionParams& p, int batch, int r) const {
    return renewed((batch * static_cast<int>(p.height) + y[r]) * static_cast<int>(p.width) + x);
  }
};

// Whether row r sees key (j, 2 t + c): bit 16 r + 8 c + j.
__device__ __forceinline__ unsigned seen_by_lane(const Window& window, int warp, int lane) {
  const unsigned seen_x = window.x.seen_by(lane / 4) >> 2 * (lane % 4);
  unsigned seen = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const unsigned seen_y = window.y.seen_by(2 * warp + r);
    seen |= ((seen_x & 1 ? seen_y : 0) | (seen_x & 2 ? seen_y << 8 : 0)) << 16 * r;
  }
  return seen;
}

// Rows of D elements between memory and tiles of [kSlots][kStride].
template <typename T, int D>
struct LaneRows {
  static_assert(D == 16 || D == 32, "one vector or two per lane");
  static constexpr int kPasses = D / 16;

  static __device__ __forceinline__ int row(int pass, int lane) { return D == 32 ? pass : lane % 4 / 2; }
  static __device__ __forceinline__ int column(int lane) { return lane % (D / 8) * 8; }
  static __device__ __forceinline__ int slot(int pass, int warp, int lane) {
    return 16 * warp + 8 * row(pass, lane) + lane / 4;
  }

  // Starts to fill kTiles tiles from base + offset, `apart` elements from one to the next in memory. Rows
  // that do not exist become zeros. Complete after wait_copies() and a barrier.
  template <int kTiles, int kStride>
  static __device__ __forceinline__ void load(T (*const (&tiles)[kTiles])[kStride], const T* base,
                                              const int64_t (&offset)[2], int apart, const LaneSlots& slots,
                                              int warp, int lane) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const bool second = row(pass, lane) == 1;
      const T* from = base + ((second ? offset[1] : offset[0]) + column(lane));
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        copy_16_bytes(&tiles[i][slot(pass, warp, lane)][column(lane)], from + i * apart,
                      second ? slots.exists[1] : slots.exists[0]);
    }
  }

  // Writes the lane's rows of a tile to base + offset.
  template <int kStride>
  static __device__ __forceinline__ void store(const T (&tile)[kSlots][kStride], T* base,
                                               const int64_t (&offset)[2], const LaneSlots& slots, int warp,
                                               int lane) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const bool second = row(pass, lane) == 1;
      if (second ? slots.exists[1] : slots.exists[0])
        *reinterpret_cast<uint4*>(base + ((second ? offset[1] : offset[0]) + column(lane))) =
            *reinterpret_cast<const uint4*>(&tile[slot(pass, warp, lane)][column(lane)]);
    }
  }
};

// lse's place of a token's row.
__device__ __forceinline__ int lse_index(const WindowAttentionParams& p, int batch, int head, int token) {
  return token + (batch * (p.heads - 1) + head) * static_cast<int>(p.height * p.width);
}

// A head's bias in 8 x 8 geometry by neighbouring keys, [dy + 7][dx + 7]: of dx and of dx - 1. What a smaller
// window does not have belongs to pairs that do not see each other: any cell's bias will do.
using BiasPairs = float2[kOffsets][kOffsets + 1];

__device__ __forceinline__ void load_bias_pairs(BiasPairs& pairs, const WindowAttentionParams& p, int head) {
  const int last = 2 * p.window - 2;  // of the table's rows and columns
  const float* const table = static_cast<const float*>(p.bias_table) + head;
#pragma unroll
  for (int first = 0; first < kOffsets * (kOffsets + 1); first += kHalfThreads) {
    const int i = first + threadIdx.x, row = i / (kOffsets + 1), column = i % (kOffsets + 1);
    const int y = clamped(row + p.window - kSide, last) * (last + 1), x = column + p.window - kSide;
    if (row < kOffsets)
      pairs[row][column] =
          make_float2(table[(y + clamped(x, last)) * p.heads], table[(y + clamped(x - 1, last)) * p.heads]);
  }
}

// The row of pairs that holds the bias of the lane's queries (2 w, g) and keys (7, 2 t + c): dy = 2 w - 7.
using LaneBias = const float2 (*)[kOffsets + 1];
__device__ __forceinline__ LaneBias lane_bias(const BiasPairs& pairs, int warp, int lane) {
  return reinterpret_cast<LaneBias>(&pairs[2 * warp][lane / 4 - 2 * (lane % 4) + kSide - 1]);
}

// ---- Backward, for both kinds of types ----------------------------------------------------------

__device__ inline float lse_of(const WindowAttentionParams& p, const Window& window, int head, int slot) {
  return window.exists(slot) ? static_cast<const float*>(p.lse)[window.lse_index(p, head, slot)] : 0.f;
}

// The chunk's and head's table of d_bias; `cell` of 8 x 8 geometry gets `sum` if the window has that offset.
__device__ inline void store_d_bias(const WindowAttentionParams& p, int chunk, int head, int cell,
                                    float sum) {
  const int dy = cell / kOffsets - kSide + p.window, dx = cell % kOffsets - kSide + p.window;
  const int side = 2 * p.window - 1;
  if (dy >= 0 && dy < side && dx >= 0 && dx < side)
    static_cast<float*>(p.d_bias_partial)[(chunk * p.heads + head) * side * side + dy * side + dx] = sum;
}

}  // namespace mmif
