// Shared by all kernels: element types, shared memory, launches. No .cu or .cuh file includes a torch header,
// so nvcc compiles them quickly and g++ compiles the same source against tests/emulator/cuda_emu.h.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef MMIF_EMULATOR
#include "cuda_emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

// Shared memory in kernels: MMIF_SHARED(Tiles, tiles) declares `Tiles& tiles` of static size,
// MMIF_SHARED_DYNAMIC one whose size the launch gave. The emulator poisons it and allocates the exact size.
#ifdef MMIF_EMULATOR
#define MMIF_SHARED(TYPE, NAME)      \
  static const char NAME##_site = 0; \
  TYPE& NAME = emu::static_shared<TYPE>(&NAME##_site)
#define MMIF_SHARED_DYNAMIC(TYPE, NAME) TYPE& NAME = emu::dynamic_shared<TYPE>()
#else
#define MMIF_SHARED(TYPE, NAME) __shared__ TYPE NAME
#define MMIF_SHARED_DYNAMIC(TYPE, NAME)                         \
  extern __shared__ __align__(128) unsigned char mmif_shared[]; \
  TYPE& NAME = *reinterpret_cast<TYPE*>(mmif_shared)
#endif

namespace mmif {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Of numbers that are not negative: one instruction.
__device__ __forceinline__ int64_t wide_product(int a, int b) {
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<unsigned>(a)) * static_cast<unsigned>(b));
}
__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int clamped(int x, int last) {  // two instructions
  x = smaller(x, last);
  return x > 0 ? x : 0;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two 16-bit values in one register, `low` in the lower half: the layout of tensor-core fragments.
template <typename T>
__device__ __forceinline__ unsigned pack(float low, float high);

#ifdef MMIF_EMULATOR
template <>
inline unsigned pack<__half>(float low, float high) {
  return __float2half_rn(low).bits | static_cast<unsigned>(__float2half_rn(high).bits) << 16;
}
template <>
inline unsigned pack<__nv_bfloat16>(float low, float high) {
  return __float2bfloat16_rn(low).bits | static_cast<unsigned>(__float2bfloat16_rn(high).bits) << 16;
}
#else
template <>
__device__ __forceinline__ unsigned pack<__half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&both);
}
template <>
__device__ __forceinline__ unsigned pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&both);
}
#endif

// The two values of a register, as floats.
template <typename T>
__device__ __forceinline__ float2 unpack(unsigned both) {
  T values[2];
  memcpy(values, &both, sizeof(both));
  return make_float2(to_float(values[0]), to_float(values[1]));
}

// One instruction each, accurate to about 2^-22; subnormal numbers count as 0.
#ifdef MMIF_EMULATOR
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log2(float x) { return std::log2(x); }
inline float fast_inverse(float x) { return 1 / x; }
#else
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

__device__ __forceinline__ unsigned bits_of(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * kLog2e); }

// x / y, given an approximate 1 / y: one Newton step, so that n equal terms, summed and divided by n, give
// the term again.
__device__ __forceinline__ float quotient(float x, float y, float inverse) {
  const float q = x * inverse;
  return fmaf(fmaf(-q, y, x), inverse, q);
}

// Two neighbours, the first at an even index.
template <typename T>
__device__ __forceinline__ void store_pair(T* to, unsigned both) {
  *reinterpret_cast<unsigned*>(to) = both;
}

// x, with its origin hidden from the compiler: what a loop computes from it is computed in the loop, not kept
// in registers throughout.
__device__ __forceinline__ int renewed(int x) {
#ifndef MMIF_EMULATOR
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// The same of an address in global memory, for the opposite end: it is kept, not computed again wherever it is
// used.
template <typename T>
__device__ __forceinline__ T* kept(T* address) {
#ifndef MMIF_EMULATOR
  asm volatile("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// threadIdx.x, which must fill the warp, through a shuffle that no compiler moves: what a loop computes from
// it is computed in the loop.
__device__ __forceinline__ int renewed_thread() {
  return __shfl_xor_sync(kAllLanes, static_cast<int>(threadIdx.x), 0);
}

// Launches a kernel and returns the error for the host part to check.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
#ifdef MMIF_EMULATOR
  static_cast<void>(stream);
  return emu::launch(kernel, grid, block, dynamic_bytes, arguments...);
#else
  if (dynamic_bytes > 48 * 1024) {  // more must be requested, once per kernel and device; it is cheap
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(dynamic_bytes));
    if (error != cudaSuccess) return cudaGetLastError(), error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_bytes;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  // The host part reports it. If it stayed, the next check of any launch would report it again.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
#endif
}

// Whether the binary contains the kernel's code for the current device.
template <class... Parameters>
bool loads(void (*kernel)(Parameters...)) {
#ifdef MMIF_EMULATOR
  return kernel != nullptr;
#else
  cudaFuncAttributes attributes;
  const bool found = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  if (!found) cudaGetLastError();
  return found;
#endif
}

}  // namespace mmif
