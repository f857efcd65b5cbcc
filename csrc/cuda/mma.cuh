// Tensor-core products, fragment loads and asynchronous copies: one thin function per instruction, each with
// a plain twin for the emulator. All are called by whole warps.
//
// A warp multiplies C[16, 8] += A[16, 16] B[16, 8]; A and B are 16-bit, C is float. With lane = 4 g + t:
//
//   a[0..3]  (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8) of A [row, k], each with its right neighbour
//   b[0..1]  (2t, g), (2t+8, g) of B [k, column], each with the one below
//   c[0..3]  (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1) of C [row, column]
//
// Two C tiles side by side, rounded and packed, are an A tile: that is how one product feeds the next.
#pragma once
#include "common.cuh"

namespace mmif {

#ifdef MMIF_EMULATOR

template <typename T>
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Operands {
    float a[4][2], b[2][2];
  } mine;
  for (int i = 0; i < 4; ++i) mine.a[i][0] = unpack<T>(a[i]).x, mine.a[i][1] = unpack<T>(a[i]).y;
  mine.b[0][0] = unpack<T>(b0).x, mine.b[0][1] = unpack<T>(b0).y;
  mine.b[1][0] = unpack<T>(b1).x, mine.b[1][1] = unpack<T>(b1).y;
  const auto& lanes = emu::exchange(kAllLanes, mine, __LINE__);
  const int g = emu::lane() / 4, t = emu::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int half = i / 2, column = 2 * t + i % 2;  // of the rows; of C
    for (int k = 0; k < 16; ++k)
      c[i] += lanes[4 * g + k % 8 / 2].a[half + 2 * (k / 8)][k % 2] *
              lanes[4 * column + k % 8 / 2].b[k / 8][k % 2];
  }
}

// Four 8 x 8 matrices; lane 8 m + r gives the address of row r of matrix m.
template <bool kTransposed>
__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
  const auto& rows = emu::exchange(kAllLanes, static_cast<const uint16_t*>(row), __LINE__);
  const int g = emu::lane() / 4, t = emu::lane() % 4;
  for (int m = 0; m < 4; ++m) {
    const unsigned low = kTransposed ? rows[8 * m + 2 * t][g] : rows[8 * m + g][2 * t];
    const unsigned high = kTransposed ? rows[8 * m + 2 * t + 1][g] : rows[8 * m + g][2 * t + 1];
    r[m] = low | high << 16;
  }
}

// Copies 16 bytes, or 16 zeros, into shared memory; complete after wait_copies() and a barrier.
__device__ inline void copy_16_bytes(void* to, const void* from, bool take) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (take && reinterpret_cast<uintptr_t>(from) % 16))
    emu::fail("an asynchronous copy of 16 bytes is not aligned");
  emu::copy_async(to, from, take ? 16 : 0, take ? 0 : 16);
}

template <int kBytes>
__device__ inline void copy_bytes(void* to, const void* from, bool take, bool write) {
  if (write &&
      (reinterpret_cast<uintptr_t>(to) % kBytes || (take && reinterpret_cast<uintptr_t>(from) % kBytes)))
    emu::fail("an asynchronous copy is not aligned to its size");
  if (write) emu::copy_async(to, from, take ? kBytes : 0, take ? 0 : kBytes);
}

__device__ inline void wait_copies() { emu::wait_copies(); }

#else

template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

#define MMIF_MULTIPLY_ADD(T, NAME)                                                                    \
  template <>                                                                                         \
  __device__ __forceinline__ void multiply_add<T>(float (&c)[4], const unsigned (&a)[4], unsigned b0, \
                                                  unsigned b1) {                                      \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                               \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                         \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                     \
  }
MMIF_MULTIPLY_ADD(__half, "f16")
MMIF_MULTIPLY_ADD(__nv_bfloat16, "bf16")
#undef MMIF_MULTIPLY_ADD

template <bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ void copy_16_bytes(void* to, const void* from, bool take) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = take ? 16 : 0;  // what is not read is written as zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

// The same for 4, 8 or 16 bytes; nothing unless `write`, without a branch.
template <int kBytes>
__device__ __forceinline__ void copy_bytes(void* to, const void* from, bool take, bool write) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = take ? kBytes : 0;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p cp.async.ca.shared.global [%0], [%1], %4, %2;\n}" ::"r"(
          address),
      "l"(from), "r"(bytes), "r"(static_cast<int>(write)), "n"(kBytes)
      : "memory");
}

__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#endif

// The fragments of a 16 x 16 piece of a row-major tile in shared memory, its corner at (row, column). Where
// the operand is the stored piece transposed, the hardware transposes each 8 x 8 matrix as it loads it; the
// addresses choose the order of the four matrices. With 16-byte aligned rows, an odd multiple of 16 bytes
// apart, the eight rows of a matrix fall on different banks.

// A[m, k], stored [m, k].
template <typename T, int kStride>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const T (&tile)[64][kStride], int row, int column,
                                       int lane) {
  load_matrices<false>(a, &tile[row + lane % 16][column + lane / 16 * 8]);
}

// A[m, k], stored [k, m]; (row, column) is (k, m).
template <typename T, int kStride>
__device__ __forceinline__ void load_a_transposed(unsigned (&a)[4], const T (&tile)[64][kStride], int row,
                                                  int column, int lane) {
  load_matrices<true>(a, &tile[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
}

// Two B tiles, columns n .. n+7 in b[0], b[1] and n+8 .. n+15 in b[2], b[3]. Stored [k, n]: row is k.
template <typename T, int kStride>
__device__ __forceinline__ void load_b(unsigned (&b)[4], const T (&tile)[64][kStride], int row, int column,
                                       int lane) {
  load_matrices<true>(b, &tile[row + lane % 16][column + lane / 16 * 8]);
}

// The same, stored [n, k]: row is n.
template <typename T, int kStride>
__device__ __forceinline__ void load_b_transposed(unsigned (&b)[4], const T (&tile)[64][kStride], int row,
                                                  int column, int lane) {
  load_matrices<false>(b, &tile[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
}

}  // namespace mmif
