// float16 and bfloat16 as bits, to and from float. Rounding is to nearest, ties to even, as torch's is.
// Branches are written as selects so that the compiler makes vector code of a loop over them.
#pragma once
#include "simd.h"

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

}  // namespace mmif::MMIF_ISA
