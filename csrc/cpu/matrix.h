// Small dense products and a transpose, in registers and L1.
#pragma once
#include "simd.h"

namespace mmif::MMIF_ISA {

// C[i, 0 .. NV vectors) = start + sum over k of A(i, k) B[k, ...] for MR rows, in registers.
template <typename T, int MR, int NV>
inline void product_block(int depth, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_row,
                          const T* start, T* c, int64_t c_row) {
  using V = Simd<T>;
  typename V::Vec sum[MR][NV] = {};
  if (start != nullptr)
    for (int i = 0; i < MR; ++i)
      for (int v = 0; v < NV; ++v) sum[i][v] = V::load(start + i * c_row + v * V::kLanes);
  for (int k = 0; k < depth; ++k) {
    typename V::Vec right[NV];
    for (int v = 0; v < NV; ++v) right[v] = V::load(b + k * b_row + v * V::kLanes);
    for (int i = 0; i < MR; ++i) {
      const typename V::Vec left = V::all(a[i * a_row + k * a_k]);
      for (int v = 0; v < NV; ++v) sum[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < MR; ++i)
    for (int v = 0; v < NV; ++v) V::store(c + i * c_row + v * V::kLanes, sum[i][v]);
}

template <typename T, int MR, int NV>
inline void product_columns(int rows, int cols, int depth, const T* a, int64_t a_row, int64_t a_k, const T* b,
                            int64_t b_row, const T* start, T* c, int64_t c_row) {
  for (int j = 0; j < cols; j += NV * Simd<T>::kLanes) {
    const T* from = start == nullptr ? nullptr : start + j;
    int i = 0;
    for (; i + MR <= rows; i += MR)
      product_block<T, MR, NV>(depth, a + i * a_row, a_row, a_k, b + j, b_row, from ? from + i * c_row : from,
                               c + i * c_row + j, c_row);
    for (; i < rows; ++i)
      product_block<T, 1, NV>(depth, a + i * a_row, a_row, a_k, b + j, b_row, from ? from + i * c_row : from,
                              c + i * c_row + j, c_row);
  }
}

// C = start + A B with A(i, k) = a[i a_row + k a_k]; start lies as C does, nullptr is 0; cols is a multiple
// of the vector's lanes. The blocks fill the registers: 32 of them with AVX-512, 16 otherwise.
template <typename T>
void product(int rows, int cols, int depth, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_row,
             const T* start, T* c, int64_t c_row) {
  constexpr bool many = MMIF_VECTOR_BYTES == 64;
  const int vectors = cols / Simd<T>::kLanes;
  if (many && vectors % 4 == 0)
    product_columns<T, 4, 4>(rows, cols, depth, a, a_row, a_k, b, b_row, start, c, c_row);
  else if (vectors % 2 == 0)
    product_columns<T, many ? 8 : 4, 2>(rows, cols, depth, a, a_row, a_k, b, b_row, start, c, c_row);
  else
    product_columns<T, 8, 1>(rows, cols, depth, a, a_row, a_k, b, b_row, start, c, c_row);
}

// The 8 x 8 block at `from` to `to`, rows to columns: pairs, then quadruples, then halves change places.
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

// [n][dim] -> [dim][stride], columns beyond n zero.
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
