// Shared by forward and backward of the fusion loss on the CPU: vectors of masks and bytes, and rows in
// scratch memory.
#pragma once
#include "../fusion_loss.h"
#include "simd.h"

namespace mmif::MMIF_ISA {

template <typename T>
using Vec = typename Simd<T>::Vec;
template <typename T>
struct Bits;
template <>
struct Bits<float> {
  typedef int32_t Int;
};
template <>
struct Bits<double> {
  typedef int64_t Int;
};
template <typename T>
using Int = typename Bits<T>::Int;
template <typename T>
struct MaskOf {  // -1 or 0 per lane, the result of a comparison
  typedef Int<T> Type __attribute__((vector_size(MMIF_VECTOR_BYTES)));
};
template <typename T>
using Mask = typename MaskOf<T>::Type;
template <typename T>
struct BytesOf {
  typedef uint8_t Type __attribute__((vector_size(MMIF_VECTOR_BYTES / sizeof(T))));
};
template <typename T>
using Bytes = typename BytesOf<T>::Type;

template <typename T>
inline Vec<T> load(const T* from) {
  return Simd<T>::load(from);
}

// The lanes to write when a row has `count` elements left.
template <typename V, typename T>
inline void store(T* to, const V& x, int64_t count) {
  if (count >= static_cast<int64_t>(sizeof(V) / sizeof(T)))
    std::memcpy(to, &x, sizeof(V));
  else
    std::memcpy(to, &x, static_cast<size_t>(count) * sizeof(T));
}

template <typename T>
inline Vec<T> absolute(Vec<T> x) {
  return (Vec<T>)((Mask<T>)x & ~(Int<T>{1} << (8 * sizeof(T) - 1)));  // without the sign bit; NaN stays NaN
}

// Lane i is -1 where x + i < width.
template <typename T>
inline Mask<T> inside(int64_t x, int64_t width) {
  Mask<T> lane{};
  for (int i = 0; i < Simd<T>::kLanes; ++i) lane[i] = i;
  const int64_t left = width - x;
  return lane < static_cast<Int<T>>(left < Simd<T>::kLanes ? left : Simd<T>::kLanes);
}

// Rows in scratch memory. Column 0 is kScratchEdge bytes into a row, so that a vector may start a few columns
// early and end up to a vector late.
template <typename T>
struct Rows {
  T* base;
  int64_t pitch;
  inline T* operator()(int64_t slot) const { return base + slot * pitch + kScratchEdge / sizeof(T); }
};

inline int64_t clamp(int64_t y, int64_t height) { return y < 0 ? 0 : y < height ? y : height - 1; }

template <typename T>
inline const T* row_of(const FusionLossImage& image, int64_t batch, int64_t y) {
  return static_cast<const T*>(image.data) + batch * image.batch_stride + y * image.row_stride;
}

// A row of an image, extended by one replicated column at each end.
template <typename T>
void load_row(const FusionLossImage& image, int64_t batch, int64_t y, int64_t width, T* to) {
  if (image.data == nullptr) return;
  std::memcpy(to, row_of<T>(image, batch, y), width * sizeof(T));
  to[-1] = to[0];
  to[width] = to[width - 1];
}

// The horizontal half of a Gaussian mean: over from[0 .. 10] in lane 0, shifted by one per further lane.
template <typename T>
inline Vec<T> mean_along(const T* from, const T* weight) {
  Vec<T> sum{};
#pragma GCC unroll 11
  for (int k = 0; k < kSsimWindow; ++k) sum += weight[k] * load(from + k);
  return sum;
}

}  // namespace mmif::MMIF_ISA
