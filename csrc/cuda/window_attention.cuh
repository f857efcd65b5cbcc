// Window attention on CUDA: what forward and backward share. The launchers are called by
// window_attention.cpp.
//
// Windows are those of the cyclic form: the map, padded to whole windows, is rolled by -shift and cut at
// multiples of the window. Slot (i, j) of the rolled window (wy, wx) is the token
//     y = wy window + i + shift, less the padded height where that is reached ("wrapped"); x alike,
// and exists if i, j < window and the token lies in the image. Two slots see each other if both exist and
// agree in what is wrapped: exactly the plane cut at shift + k window, with the pieces of opposite borders in
// one block. Nothing is rolled in memory; it is all in the addresses, and what does not exist is never
// touched.
//
// A window is worked on as 8 x 8 slots, whatever its size: slot s = 8 i + j. Tokens of different pieces share
// matrix products in which the others' weight is 0, so a NaN or infinity spreads to all pieces of its block.
#pragma once
#include "mma.cuh"
#include "window_attention_launch.h"

namespace mmif {

constexpr int kSide = 8;                         // slots of a window along an axis
constexpr int kSlots = kSide * kSide;            // tokens of a window
constexpr int kOffsets = 2 * kSide - 1;          // differences of two slots along an axis
constexpr int kBiasCells = kOffsets * kOffsets;  // of the bias table in shared memory

// The windows of the map: passed to kernels beside the params, since constants cost no registers.
struct Plan {
  int windows, down, across;
  bool aligned;  // rows can be read 16 bytes at a time
};

// Its float32 part, in window_attention_bwd_float.cu.
cudaError_t window_attention_bwd_float_launch(const WindowAttentionParams& p, unsigned blocks,
                                              cudaStream_t stream);

inline Plan plan(const WindowAttentionParams& p) {
  // Aligned: every head's row of q, k, v and d_out begins at a multiple of 16 bytes.
  const int element_bytes = p.dtype == DType::kFloat ? 4 : 2;
  int64_t all =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.qkv) | reinterpret_cast<uintptr_t>(p.d_out));
  for (int64_t stride : p.qkv_stride) all |= stride * element_bytes;
  if (p.d_out)
    for (int64_t stride : p.d_out_stride) all |= stride * element_bytes;
  return {static_cast<int>(window_count(p)), static_cast<int>(ceil_div<int64_t>(p.height, p.window)),
          static_cast<int>(ceil_div<int64_t>(p.width, p.window)), all % 16 == 0};
}

// The grid is one block per head and window, or chunk of windows, in x; windows are counted in 32 bits. Do they
// fit?
inline bool launchable(const WindowAttentionParams& p, int64_t blocks_a_head) {
  constexpr int64_t kMost = 1 << 30;
  return p.window >= 1 && p.window <= kSide && p.height < kMost && p.width < kMost && p.heads < kMost &&
         window_count(p) < kMost && blocks_a_head < kMost / p.heads;
}

// One axis of one window. Bit i of a set stands for slot i.
struct Axis {
  int begin;         // coordinate of slot 0
  int padded;        // what a wrapped slot's coordinate is reduced by
  unsigned direct;   // slots that exist and are not wrapped
  unsigned wrapped;  // slots that exist and are

  __device__ Axis(int window_index, int window, int shift, int length)
      : begin(window_index * window + shift),
        padded(ceil_div(length, window) * window),
        direct(0),
        wrapped(0) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int at = begin + i;
      if (i < window && at < length) direct |= 1u << i;
      if (i < window && at >= padded && at - padded < length) wrapped |= 1u << i;
    }
  }
  __device__ int token(int i) const { return begin + i - (begin + i >= padded ? padded : 0); }
  __device__ bool exists(int i) const { return (direct | wrapped) >> i & 1; }
  // The slots that slot i sees; none if it does not exist.
  __device__ unsigned seen_by(int i) const {
    return direct >> i & 1 ? direct : wrapped >> i & 1 ? wrapped : 0;
  }
};

struct Window {
  int batch;
  Axis y, x;

  // number counts windows across, down, then over the batch.
  __device__ Window(const WindowAttentionParams& p, const Plan& plan, int number)
      : batch(number / plan.across / plan.down),
        y(number / plan.across % plan.down, p.window, p.shift, static_cast<int>(p.height)),
        x(number % plan.across, p.window, p.shift, static_cast<int>(p.width)) {}
  __device__ bool exists(int slot) const { return y.exists(slot / kSide) && x.exists(slot % kSide); }
  // Row of the slot's token in a [B, H, W, ...] array.
  __device__ int64_t token(const WindowAttentionParams& p, int slot) const {
    return (batch * p.height + y.token(slot / kSide)) * p.width + x.token(slot % kSide);
  }
  // Where it is in an array of the strides of B, H, W.
  __device__ int64_t offset(const int64_t* stride, int slot) const {
    return batch * stride[0] + y.token(slot / kSide) * stride[1] + x.token(slot % kSide) * stride[2];
  }
  __device__ int64_t lse_index(const WindowAttentionParams& p, int head, int slot) const {
    return ((static_cast<int64_t>(batch) * p.heads + head) * p.height + y.token(slot / kSide)) * p.width +
           x.token(slot % kSide);
  }
};

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

// Rows of D elements, one per slot, to or from tiles in shared memory; 16 bytes a thread at a time,
// neighbouring threads on neighbouring bytes.
template <typename T, int D, int kThreads>
struct Rows {
  static constexpr int kPerVector = 16 / sizeof(T);
  static constexpr int kVectors = D / kPerVector;  // of a row

  // Starts to fill tiles: q, k, v of a head, or one tile from `base` by the strides of B, H, W. Rows that do
  // not exist become zeros. After wait_copies() and a barrier all is there. Not unrolled: the copies are on
  // their way while the next addresses are computed, and the addresses of all would fill the registers.
  template <int kStride, int kVStride>
  static __device__ __forceinline__ void load_qkv(T (&q)[kSlots][kStride], T (&k)[kSlots][kVStride],
                                                  T (&v)[kSlots][kVStride], const WindowAttentionParams& p,
                                                  int head, const Window& window, bool aligned) {
    const T* base = static_cast<const T*>(p.qkv) + head * p.qkv_stride[4];
#pragma unroll 1
    for (int i = threadIdx.x; i < kSlots * kVectors; i += kThreads) {
      const int slot = i / kVectors, column = i % kVectors * kPerVector;
      const bool exists = window.exists(slot);
      const T* from = base + (exists ? window.offset(p.qkv_stride, slot) + column : 0);
      copy(&q[slot][column], from, exists, aligned);
      copy(&k[slot][column], from + p.qkv_stride[3], exists, aligned);
      copy(&v[slot][column], from + 2 * p.qkv_stride[3], exists, aligned);
    }
  }

  template <int kStride>
  static __device__ __forceinline__ void load(T (&tile)[kSlots][kStride], const T* base,
                                              const int64_t* stride, const Window& window, bool aligned) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kSlots * kVectors; i += kThreads) {
      const int slot = i / kVectors, column = i % kVectors * kPerVector;
      const bool exists = window.exists(slot);
      copy(&tile[slot][column], base + (exists ? window.offset(stride, slot) + column : 0), exists, aligned);
    }
  }

  // One vector, or zeros; element by element where memory is not aligned.
  static __device__ __forceinline__ void copy(T* to, const T* from, bool exists, bool aligned) {
    if (aligned) {
      copy_16_bytes(to, from, exists);
    } else {
#pragma unroll 1
      for (int e = 0; e < kPerVector; ++e) to[e] = exists ? from[e] : from_float<T>(0.f);
    }
  }

  // Writes the rows of `count` slots from `first` on, taken by `threads` threads of which this is `thread`,
  // to base + token * stride. Our outputs are contiguous and allocated by torch: aligned always.
  template <int kStride>
  static __device__ __forceinline__ void store(const T (&tile)[kSlots][kStride], T* base, int64_t stride,
                                               const WindowAttentionParams& p, const Window& window,
                                               int first, int count, int thread, int threads) {
#pragma unroll 1
    for (int i = thread; i < count * kVectors; i += threads) {
      const int slot = first + i / kVectors, column = i % kVectors * kPerVector;
      if (window.exists(slot))
        *reinterpret_cast<uint4*>(base + window.token(p, slot) * stride + column) =
            *reinterpret_cast<const uint4*>(&tile[slot][column]);
    }
  }
};

// ---- Backward, for both kinds of types ----------------------------------------------------------

__device__ inline float lse_of(const WindowAttentionParams& p, const Window& window, int head, int slot) {
  return window.exists(slot) ? static_cast<const float*>(p.lse)[window.lse_index(p, head, slot)] : 0.f;
}

__device__ inline int chunk_begin(const WindowAttentionParams& p, int windows, int chunk) {
  return static_cast<int>(static_cast<int64_t>(chunk) * windows / p.chunks);
}

// The chunk's and head's table of d_bias; `cell` of 8 x 8 geometry gets `sum` if the window has that offset.
__device__ inline void store_d_bias(const WindowAttentionParams& p, int chunk, int head, int cell,
                                    float sum) {
  const int dy = cell / kOffsets - kSide + p.window, dx = cell % kOffsets - kSide + p.window;
  const int side = 2 * p.window - 1;
  if (dy >= 0 && dy < side && dx >= 0 && dx < side)
    static_cast<float*>(
        p.d_bias_partial)[(static_cast<int64_t>(chunk) * p.heads + head) * side * side + dy * side + dx] =
        sum;
}

}  // namespace mmif
