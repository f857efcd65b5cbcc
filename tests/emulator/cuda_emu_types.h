// The types of CUDA that kernels name, for cuda_emu.h: dim3, vectors, 16-bit floats, errors, qualifiers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// No __shared__: kernels declare shared memory with MMIF_SHARED (csrc/cuda/common.cuh), which can be
// poisoned.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

namespace emu {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace emu

// Rounds to nearest, ties to even, as the hardware does.
inline __half __float2half_rn(float value) {
  const uint32_t bits = emu::float_bits(value), size = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (size > 0x7f800000u) return {0x7fff};                                  // NaN
  if (size >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or more
  if (size < 0x38800000u) {  // a subnormal half: its unit, 2^-24, is that of a float in [0.5, 1)
    const uint32_t sum = emu::float_bits(emu::bits_float(size) + 0.5f);
    return {static_cast<uint16_t>(sign | (sum - 0x3f000000u))};
  }
  const uint32_t rounded = size + 0xfffu + (size >> 13 & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};  // exponent bias 127 -> 15
}

inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, size = value.bits & 0x7fffu;
  if (size >= 0x7c00u) return emu::bits_float(sign | 0x7f800000u | (size & 0x3ffu) << 13);
  if (size < 0x0400u) return (sign ? -1.f : 1.f) * static_cast<float>(size) * 0x1p-24f;
  return emu::bits_float(sign | ((size << 13) + 0x38000000u));
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = emu::float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline float __bfloat162float(__nv_bfloat16 value) {
  return emu::bits_float(static_cast<uint32_t>(value.bits) << 16);
}
