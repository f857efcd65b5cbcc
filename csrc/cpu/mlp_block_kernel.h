// The second half of LAGN's global block on the CPU, one chunk of tokens at a time; compiled once per
// instruction set.
#pragma once
#include "../mlp_block.h"
#include "pointwise_kernel.h"

namespace mmif::MMIF_ISA {

// Normalises n tokens of x: z, rstd of each token and, if wanted, t = z weight + bias.
template <typename S, typename T>
void normalise(const MlpBlockParams& p, const S* x, int n, T* z, T* t, T* rstd) {
  using V = Simd<T>;
  const int C = p.layers.channels;
  const T *weight = static_cast<const T*>(p.norm_weight), *bias = static_cast<const T*>(p.norm_bias);
  for (int i = 0; i < n; ++i, x += C, z += C, t += C) {
    typename V::Vec sum{}, square{};
    for (int c = 0; c < C; c += V::kLanes) sum += load_wide<T>(x + c);
    const T mean = V::sum(sum) / C;
    for (int c = 0; c < C; c += V::kLanes) {
      const typename V::Vec off = load_wide<T>(x + c) - mean;
      square += off * off;
      V::store(z + c, off);
    }
    rstd[i] = 1 / std::sqrt(V::sum(square) / C + static_cast<T>(p.eps));
    for (int c = 0; c < C; c += V::kLanes) {
      const typename V::Vec normal = V::load(z + c) * rstd[i];
      V::store(z + c, normal);
      V::store(t + c, normal * V::load(weight + c) + V::load(bias + c));
    }
  }
}

template <typename S, typename T>
void mlp_block_forward(const MlpBlockParams& p, int64_t begin, int64_t end) {
  using V = Simd<T>;
  const int C = p.layers.channels;
  Arena arena(Pointwise<S, T>::bytes(p.layers) + 3 * Arena::size<T>(kTile * C) + Arena::size<T>(kTile));
  Pointwise<S, T> layers(p.layers, false, arena);
  T *z = arena.take<T>(kTile * C), *t = arena.take<T>(kTile * C), *y = arena.take<T>(kTile * C);
  T* rstd = arena.take<T>(kTile);
  for (int64_t first = begin; first < end; first += kTile) {
    const int n = static_cast<int>(end - first < kTile ? end - first : kTile);
    const S* x = static_cast<const S*>(p.x) + first * C;
    normalise(p, x, n, z, t, rstd);
    layers.forward(n, t, static_cast<S*>(p.u) + first * p.layers.hidden, y);
    S* to = static_cast<S*>(p.y) + first * C;
    for (int i = 0; i < n * C; i += V::kLanes) store_narrow<T>(load_wide<T>(x + i) + V::load(y + i), to + i);
  }
}

// From d_t of n tokens to d_x; adds d_weight and d_bias to the sums.
template <typename S, typename T>
void normalise_backward(const MlpBlockParams& p, int n, const T* z, const T* rstd, const T* d_t, const S* d_y,
                        T* sums, S* d_x) {
  using V = Simd<T>;
  const int C = p.layers.channels;
  const T* weight = static_cast<const T*>(p.norm_weight);
  for (int i = 0; i < n; ++i, z += C, d_t += C, d_y += C, d_x += C) {
    typename V::Vec sum{}, dot{};
    for (int c = 0; c < C; c += V::kLanes) {
      const typename V::Vec d = V::load(d_t + c), normal = V::load(z + c), g = d * V::load(weight + c);
      sum += g, dot += g * normal;
      V::store(sums + c, V::load(sums + c) + d * normal);
      V::store(sums + C + c, V::load(sums + C + c) + d);
    }
    const T mean = V::sum(sum) / C, along = V::sum(dot) / C;
    for (int c = 0; c < C; c += V::kLanes) {
      const typename V::Vec g = V::load(d_t + c) * V::load(weight + c);
      store_narrow<T>(load_wide<T>(d_y + c) + (g - mean - V::load(z + c) * along) * rstd[i], d_x + c);
    }
  }
}

template <typename S, typename T>
void mlp_block_backward(const MlpBlockParams& p, int64_t chunk, int64_t begin, int64_t end) {
  const int C = p.layers.channels, E = p.layers.hidden;
  const PointwiseOffsets at = mlp_block_offsets(C, E);
  Arena arena(Pointwise<S, T>::bytes(p.layers) + 3 * Arena::size<T>(kTile * C) + Arena::size<T>(kTile));
  Pointwise<S, T> layers(p.layers, true, arena);
  T *z = arena.take<T>(kTile * C), *t = arena.take<T>(kTile * C), *d_t = arena.take<T>(kTile * C);
  T* rstd = arena.take<T>(kTile);
  T* sums = static_cast<T*>(p.partial) + chunk * at.end;
  std::memset(sums, 0, at.end * sizeof(T));
  for (int64_t first = begin; first < end; first += kTile) {
    const int n = static_cast<int>(end - first < kTile ? end - first : kTile);
    const S* d_y = static_cast<const S*>(p.d_y) + first * C;
    normalise(p, static_cast<const S*>(p.x) + first * C, n, z, t, rstd);
    layers.backward(n, t, d_y, static_cast<const S*>(p.u) + first * E, at, sums, d_t);
    normalise_backward(p, n, z, rstd, d_t, d_y, sums, static_cast<S*>(p.d_x) + first * C);
  }
}

void mlp_block_fwd(const MlpBlockParams& p, int64_t chunk) {
  const int64_t begin = chunk * p.tokens / p.chunks, end = (chunk + 1) * p.tokens / p.chunks;
  MMIF_BY_TYPE(p.dtype, mlp_block_forward, p, begin, end)
}

void mlp_block_bwd(const MlpBlockParams& p, int64_t chunk) {
  const int64_t begin = chunk * p.tokens / p.chunks, end = (chunk + 1) * p.tokens / p.chunks;
  MMIF_BY_TYPE(p.dtype, mlp_block_backward, p, chunk, begin, end)
}

}  // namespace mmif::MMIF_ISA
