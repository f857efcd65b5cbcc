// float16 and bfloat16 as bits, to and from float. Rounds to nearest, ties to even, as torch does.
// Branches are written as selects so that the compiler can vectorise loops over them.
#pragma once
#include "simd.h"

#if MMIF_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

namespace mmif::MMIF_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }

inline float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
  // Reading the exponent with float's bias leaves the value too small by 2^112, subnormals included.
  const uint32_t scaled = as_bits(as_float(rest) * as_float(0x77800000u));
  const uint32_t special = rest >= (0x7c00u << 13) ? 0x7f800000u : 0u;  // infinity and NaN
  return as_float(sign | scaled | special);
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(double x, double* to) { *to = x; }

inline void narrow(float x, BFloat16* to) {
  const uint32_t u = as_bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline void narrow(float x, Half* to) {
  const uint32_t u = as_bits(x), sign = (u >> 16) & 0x8000u, size = u & 0x7fffffffu;
  // Below 2^-14 a half has steps of 2^-24, and so has a float just above 1/2: adding rounds.
  const uint32_t subnormal = as_bits(as_float(size) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
  uint32_t h = size < 0x38800000u ? subnormal : normal;
  h = size >= 0x47800000u ? 0x7c00u : h;
  h = size > 0x7f800000u ? 0x7e00u : h;
  to->bits = static_cast<uint16_t>(sign | h);
}

// A vector of T from numbers of type S, and back.
template <typename T, typename S>
inline typename Simd<T>::Vec load_wide(const S* from) {
  T wide[Simd<T>::kLanes];
  for (int i = 0; i < Simd<T>::kLanes; ++i) wide[i] = widen(from[i]);
  return Simd<T>::load(wide);
}

template <typename T, typename S>
inline void store_narrow(typename Simd<T>::Vec v, S* to) {
  const typename Simd<T>::Lanes wide = Simd<T>::lanes(v);
  for (int i = 0; i < Simd<T>::kLanes; ++i) narrow(wide.of[i], to + i);
}

// bfloat16 by hand: compilers generate poor code for the loops above.
typedef uint16_t HalfBits __attribute__((vector_size(MMIF_VECTOR_BYTES / 2)));
typedef uint32_t WordBits __attribute__((vector_size(MMIF_VECTOR_BYTES)));

inline WordBits word_of(HalfBits bits) {
#if MMIF_VECTOR_BYTES == 64
  return (WordBits)_mm512_cvtepu16_epi32((__m256i)bits);
#else
  return __builtin_convertvector(bits, WordBits);
#endif
}

inline HalfBits bfloat16_bits(Simd<float>::Vec v) {
#if MMIF_BFLOAT16_DOT
  return (HalfBits)_mm512_cvtneps_pbh((__m512)v);  // subnormal numbers become 0
#else
  const WordBits u = (WordBits)v, nan = WordBits{} + 0x7fc0u;
  const WordBits rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const WordBits bits = (u & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
#if MMIF_VECTOR_BYTES == 64
  return (HalfBits)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, HalfBits);
#endif
#endif
}

template <>
inline Simd<float>::Vec load_wide<float>(const BFloat16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof(bits));
  return (Simd<float>::Vec)(word_of(bits) << 16);
}

template <>
inline void store_narrow<float>(Simd<float>::Vec v, BFloat16* to) {
  const HalfBits bits = bfloat16_bits(v);
  std::memcpy(to, &bits, sizeof(bits));
}

}  // namespace mmif::MMIF_ISA
