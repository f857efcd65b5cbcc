// Factors of products: plain numbers, or pairs of bfloat16 where the CPU has a dot product for them.
//
// A pair holds two neighbours along the summed index, so the depth of such a product counts pairs: units(n).
// A left factor is stored as [rows][units(depth)], a right one as [units(depth)][columns], where each column
// holds a pair of rows. A right factor read with its strides exchanged is the left factor of the transposed
// matrix. With an odd number of rows, the last one is paired with zeros.
#pragma once
#include "half.h"
#include "simd.h"

namespace mmif::MMIF_ISA {

// Two bfloat16, the first in the low half.
struct Pair {
  uint32_t bits;
};

template <typename S, typename T>
struct Factor {
  using Unit = T;
};

#if MMIF_BFLOAT16_DOT
template <>
struct Factor<BFloat16, float> {
  using Unit = Pair;
};

template <>
struct Simd<Pair> {
  typedef uint32_t Vec __attribute__((vector_size(MMIF_VECTOR_BYTES)));

  static inline Vec load(const Pair* p) {
    Vec v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static inline Vec all(Pair x) { return x.bits - Vec{}; }
};

// Sums are float32; subnormal numbers count as 0.
inline Simd<float>::Vec multiply_add(Simd<float>::Vec sum, Simd<Pair>::Vec x, Simd<Pair>::Vec y) {
  return (Simd<float>::Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
}
#endif

template <typename U>
constexpr int units(int n) {
  return n;
}
template <>
constexpr int units<Pair>(int n) {
  return (n + 1) / 2;
}

// x [rows][cols] as a left factor, cols being a multiple of the vector's lanes. Copied to `room` unless x
// already has that layout.
template <typename T>
const T* left_factor(const T* x, int, int, T*) {
  return x;
}
inline const Pair* left_factor(const BFloat16* x, int, int, Pair*) {
  return reinterpret_cast<const Pair*>(x);
}
template <typename S, typename T>
const T* left_factor(const S* x, int rows, int cols, T* room) {
  for (int i = 0; i < rows * cols; i += Simd<T>::kLanes) Simd<T>::store(room + i, load_wide<T>(x + i));
  return room;
}
inline const Pair* left_factor(const float* x, int rows, int cols, Pair* room) {
  BFloat16* to = reinterpret_cast<BFloat16*>(room);
  for (int i = 0; i < rows * cols; i += Simd<float>::kLanes)
    store_narrow<float>(Simd<float>::load(x + i), to + i);
  return room;
}

// The same as a right factor.
template <typename T>
const T* right_factor(const T* x, int, int, T*) {
  return x;
}
template <typename S, typename T>
const T* right_factor(const S* x, int rows, int cols, T* room) {
  return left_factor(x, rows, cols, room);
}
template <typename S>
const Pair* right_factor(const S* x, int rows, int cols, Pair* room) {
  Pair* to = room;
  for (int i = 0; i < rows; i += 2)
    for (int j = 0; j < cols; j += Simd<float>::kLanes, to += Simd<float>::kLanes) {
      const S* low = x + i * cols + j;
      WordBits bits = word_of(bfloat16_bits(load_wide<float>(low)));
      if (i + 1 < rows) bits |= word_of(bfloat16_bits(load_wide<float>(low + cols))) << 16;
      std::memcpy(to, &bits, sizeof(bits));
    }
  return room;
}

}  // namespace mmif::MMIF_ISA
