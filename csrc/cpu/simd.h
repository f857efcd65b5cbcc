// Vectors of the instruction set being compiled for, by the vector extension of GCC and Clang.
//
// kernels_baseline.cpp, kernels_avx2.cpp, kernels_avx512.cpp and kernels_avx512bf16.cpp each compile the same
// kernels for one instruction set into a namespace of its own; dispatch.h chooses one at run time. A file
// that includes this must not instantiate anything from the standard library: the linker keeps only one copy
// of such a function, perhaps one that this CPU cannot run.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(MMIF_ISA) || !defined(MMIF_VECTOR_BYTES)
#error "compile the kernels through kernels_*.cpp"
#endif

namespace mmif::MMIF_ISA {

// Reduces the lanes of a vector to one number, halving each time: in a chain of kLanes additions, each would
// wait for the one before.
template <typename T, int Bytes, typename Join>
inline T fold(const T* lanes, Join join) {
  constexpr int n = Bytes / sizeof(T);
  if constexpr (n == 2) {
    return join(lanes[0], lanes[1]);
  } else {
    typedef T Part __attribute__((vector_size(Bytes / 2)));
    Part low, high;
    std::memcpy(&low, lanes, sizeof(Part));
    std::memcpy(&high, lanes + n / 2, sizeof(Part));
    const Part joined = join(low, high);
    T rest[n / 2];
    std::memcpy(rest, &joined, sizeof(Part));
    return fold<T, Bytes / 2>(rest, join);
  }
}

// kLanes numbers that one instruction handles together. Vec is GCC's vector type: + * < ?: act on each lane.
template <typename T>
struct Simd {
  static constexpr int kLanes = MMIF_VECTOR_BYTES / sizeof(T);
  typedef T Vec __attribute__((vector_size(MMIF_VECTOR_BYTES)));

  static inline Vec load(const T* p) {
    Vec v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static inline void store(T* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
  static inline Vec all(T x) { return x - Vec{}; }  // x in every lane; unlike x + 0 it keeps the sign of 0
  static inline T sum(Vec v) {
    return fold<T, MMIF_VECTOR_BYTES>(lanes(v).of, [](auto x, auto y) { return x + y; });
  }
  static inline T maximum(Vec v) {
    return fold<T, MMIF_VECTOR_BYTES>(lanes(v).of, [](auto x, auto y) { return y > x ? y : x; });
  }
  struct Lanes {
    alignas(MMIF_VECTOR_BYTES) T of[kLanes];
  };
  static inline Lanes lanes(Vec v) {
    Lanes l;
    std::memcpy(l.of, &v, sizeof(v));
    return l;
  }
};

inline Simd<float>::Vec multiply_add(Simd<float>::Vec sum, Simd<float>::Vec x, Simd<float>::Vec y) {
  return sum + x * y;
}
inline Simd<double>::Vec multiply_add(Simd<double>::Vec sum, Simd<double>::Vec x, Simd<double>::Vec y) {
  return sum + x * y;
}

// e^x of each lane for x <= 0, within 2 ulp; 0 below -87, NaN where x is NaN. Cody and Waite's reduction to
// |r| <= ln 2 / 2, then Taylor's series to r^7, whose remainder is below half an ulp there.
inline Simd<float>::Vec exp_nonpositive(Simd<float>::Vec x) {
  using Vec = Simd<float>::Vec;
  typedef int32_t Int __attribute__((vector_size(MMIF_VECTOR_BYTES)));
  const Vec lowest = Simd<float>::all(-87.0f);
  const Vec rounder = Simd<float>::all(12582912.0f);  // 1.5 * 2^23: the nearest integer ends in the low bits
  const Vec clamped = x < lowest ? lowest : x;
  const Vec shifted = clamped * 1.44269504089f + rounder;
  const Vec n = shifted - rounder;
  const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Vec power = (Vec)(((Int)shifted - (Int)rounder + 127) << 23);  // 2^n, written into the exponent
  return x < lowest ? Vec{} : p * power;
}

inline Simd<double>::Vec exp_nonpositive(Simd<double>::Vec x) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace mmif::MMIF_ISA
