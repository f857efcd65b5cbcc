// Small dense products and a transpose, in registers and L1.
#pragma once
#include "simd.h"

namespace mmif::MMIF_ISA {

// C[i, 0 .. NV vectors) = start + sum over k of A(i, k) B[k, ...] for MR rows, in registers. U is T, or Pair.
template <typename U, typename T, int MR, int NV>
inline void product_block(int depth, const U* a, int64_t a_row, int64_t a_k, const U* b, int64_t b_row,
                          const T* start, int64_t start_row, T* c, int64_t c_row) {
  using V = Simd<T>;
  typename V::Vec sum[MR][NV];
  // Unrolled; otherwise the sums would be kept in memory.
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v)
      sum[i][v] = start == nullptr ? typename V::Vec{} : V::load(start + i * start_row + v * V::kLanes);
  for (int k = 0; k < depth; ++k) {
    typename Simd<U>::Vec right[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) right[v] = Simd<U>::load(b + k * b_row + v * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const typename Simd<U>::Vec left = Simd<U>::all(a[i * a_row + k * a_k]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) sum[i][v] = multiply_add(sum[i][v], left, right[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) V::store(c + i * c_row + v * V::kLanes, sum[i][v]);
}

template <typename U, typename T, int MR, int NV>
inline void product_columns(int rows, int cols, int depth, const U* a, int64_t a_row, int64_t a_k, const U* b,
                            int64_t b_row, const T* start, int64_t start_row, T* c, int64_t c_row) {
  for (int j = 0; j < cols; j += NV * Simd<T>::kLanes) {
    const T* from = start == nullptr ? nullptr : start + j;
    int i = 0;
    for (; i + MR <= rows; i += MR)
      product_block<U, T, MR, NV>(depth, a + i * a_row, a_row, a_k, b + j, b_row,
                                  from ? from + i * start_row : from, start_row, c + i * c_row + j, c_row);
    for (; i < rows; ++i)
      product_block<U, T, 1, NV>(depth, a + i * a_row, a_row, a_k, b + j, b_row,
                                 from ? from + i * start_row : from, start_row, c + i * c_row + j, c_row);
  }
}

// C = start + A B with A(i, k) = a[i a_row + k a_k]. A null start means 0, and start_row 0 repeats one row.
// cols is a multiple of the vector's lanes. The blocks fill the registers: 32 with AVX-512, 16 otherwise.
template <typename U, typename T>
void product(int rows, int cols, int depth, const U* a, int64_t a_row, int64_t a_k, const U* b, int64_t b_row,
             const T* start, int64_t start_row, T* c, int64_t c_row) {
  constexpr bool many = MMIF_VECTOR_BYTES == 64;
  const int vectors = cols / Simd<T>::kLanes;
  if (many && vectors % 4 == 0)
    product_columns<U, T, 4, 4>(rows, cols, depth, a, a_row, a_k, b, b_row, start, start_row, c, c_row);
  else if (vectors % 2 == 0)
    product_columns<U, T, many ? 8 : 4, 2>(rows, cols, depth, a, a_row, a_k, b, b_row, start, start_row, c,
                                           c_row);
  else
    product_columns<U, T, 8, 1>(rows, cols, depth, a, a_row, a_k, b, b_row, start, start_row, c, c_row);
}

// Transposes the 8 x 8 block at `from` into `to`: exchanges within pairs, within fours, then halves.
inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  typedef float Vec __attribute__((vector_size(32)));
  Vec r[8], s[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&r[i], from + i * from_row, sizeof(Vec));
  for (int i = 0; i < 8; i += 2) {
    s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      r[i + 2 * k] = __builtin_shufflevector(s[i + k], s[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * k + 1] = __builtin_shufflevector(s[i + k], s[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int k = 0; k < 4; ++k) {
    const Vec low = __builtin_shufflevector(r[k], r[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    const Vec high = __builtin_shufflevector(r[k], r[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    std::memcpy(to + k * to_row, &low, sizeof(Vec));
    std::memcpy(to + (k + 4) * to_row, &high, sizeof(Vec));
  }
}

// [n][dim] -> [dim][stride]; columns beyond n are zero.
template <typename T>
void transpose(int n, int dim, int64_t stride, const T* from, T* to) {
  int i = 0;
  if constexpr (sizeof(T) == sizeof(float))
    for (; i + 8 <= n; i += 8)
      for (int d = 0; d < dim; d += 8) transpose_block(from + i * dim + d, dim, to + d * stride + i, stride);
  for (int d = 0; d < dim; ++d) {
    for (int k = i; k < n; ++k) to[d * stride + k] = from[k * dim + d];
    for (int k = n; k < stride; ++k) to[d * stride + k] = 0;
  }
}

}  // namespace mmif::MMIF_ISA
