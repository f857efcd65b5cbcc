// LAGN's gate on the CPU, one chunk of pixels at a time; compiled once per instruction set.
#pragma once
#include "../gated_mix.h"
#include "pointwise_kernel.h"

namespace mmif::MMIF_ISA {

template <typename T>
typename Simd<T>::Vec sigmoid(typename Simd<T>::Vec z) {
  const typename Simd<T>::Vec small = exp_nonpositive(z < 0 ? z : -z);
  return (z < 0 ? small : Simd<T>::all(1)) / (1 + small);
}

// Shared by both passes: the weights as right factors, and memory for a tile's maps.
template <typename S, typename T>
struct GateRoom {
  using U = typename Factor<S, T>::Unit;
  Arena arena;
  const U *local_weight, *global_weight;
  T *z, *local, *global;  // [kTile][C]
  U *left, *right, *z_right;

  explicit GateRoom(const GatedMixParams& p)
      : arena(2 * Arena::size<U>(p.channels * p.channels) + 3 * Arena::size<T>(kTile * p.channels) +
              3 * Arena::size<U>(kTile * p.channels)) {
    const int C = p.channels;
    local_weight = right_factor(static_cast<const T*>(p.local_weight), C, C, arena.take<U>(C * C));
    global_weight = right_factor(static_cast<const T*>(p.global_weight), C, C, arena.take<U>(C * C));
    z = arena.take<T>(kTile * C), local = arena.take<T>(kTile * C), global = arena.take<T>(kTile * C);
    left = arena.take<U>(kTile * C), right = arena.take<U>(kTile * C), z_right = arena.take<U>(kTile * C);
  }
};

template <typename S, typename T>
void gated_mix_forward(const GatedMixParams& p, int64_t begin, int64_t end) {
  using V = Simd<T>;
  using U = typename Factor<S, T>::Unit;
  const int C = p.channels, deep = units<U>(C);
  GateRoom<S, T> room(p);
  for (int64_t first = begin; first < end; first += kTile) {
    const int n = static_cast<int>(end - first < kTile ? end - first : kTile);
    const S *local = static_cast<const S*>(p.local) + first * C,
            *global = static_cast<const S*>(p.global) + first * C;
    const T* bias = static_cast<const T*>(p.bias);
    T* z = room.z;
    product<U, T>(n, C, deep, left_factor(local, n, C, room.left), deep, 1, room.local_weight, C, bias, 0, z,
                  C);
    product<U, T>(n, C, deep, left_factor(global, n, C, room.left), deep, 1, room.global_weight, C, z, C, z,
                  C);
    S *y = static_cast<S*>(p.y) + first * C, *share = static_cast<S*>(p.share) + first * C;
    for (int i = 0; i < n * C; i += V::kLanes) {
      const typename V::Vec s = sigmoid<T>(V::load(z + i)), l = load_wide<T>(local + i),
                            g = load_wide<T>(global + i);
      store_narrow<T>(s, share + i);
      store_narrow<T>(s * l + (1 - s) * g, y + i);
    }
  }
}

template <typename S, typename T>
void gated_mix_backward(const GatedMixParams& p, int64_t chunk, int64_t begin, int64_t end) {
  using V = Simd<T>;
  using U = typename Factor<S, T>::Unit;
  const int C = p.channels, deep = units<U>(C);
  GateRoom<S, T> room(p);
  T* d_local_weight = static_cast<T*>(p.partial) + chunk * (2 * C + 1) * C;
  T *d_global_weight = d_local_weight + C * C, *d_bias = d_global_weight + C * C;
  std::memset(d_local_weight, 0, (2 * C + 1) * C * sizeof(T));
  for (int64_t first = begin; first < end; first += kTile) {
    const int n = static_cast<int>(end - first < kTile ? end - first : kTile), deep_n = units<U>(n);
    const int64_t at = first * C;
    const S *local = static_cast<const S*>(p.local) + at, *global = static_cast<const S*>(p.global) + at;
    const S *d_y = static_cast<const S*>(p.d_y) + at, *share = static_cast<const S*>(p.share) + at;
    T *d_z = room.z, *d_l = room.local, *d_g = room.global;
    for (int i = 0; i < n * C; i += V::kLanes) {
      const typename V::Vec s = load_wide<T>(share + i), d = load_wide<T>(d_y + i), to_local = d * s;
      V::store(d_l + i, to_local);
      V::store(d_g + i, d - to_local);
      V::store(d_z + i, (load_wide<T>(local + i) - load_wide<T>(global + i)) * to_local * (1 - s));
    }
    add_columns(d_z, n, C, d_bias);
    const U* left = left_factor(d_z, n, C, room.left);
    product<U, T>(n, C, deep, left, deep, 1, room.local_weight, C, d_l, C, d_l, C);
    product<U, T>(n, C, deep, left, deep, 1, room.global_weight, C, d_g, C, d_g, C);
    const U *z_right = right_factor(d_z, n, C, room.z_right), *right = right_factor(local, n, C, room.right);
    product<U, T>(C, C, deep_n, z_right, 1, C, right, C, d_local_weight, C, d_local_weight, C);
    right = right_factor(global, n, C, room.right);
    product<U, T>(C, C, deep_n, z_right, 1, C, right, C, d_global_weight, C, d_global_weight, C);
    S *to_local = static_cast<S*>(p.d_local) + at, *to_global = static_cast<S*>(p.d_global) + at;
    for (int i = 0; i < n * C; i += V::kLanes) {
      store_narrow<T>(V::load(d_l + i), to_local + i);
      store_narrow<T>(V::load(d_g + i), to_global + i);
    }
  }
}

void gated_mix_fwd(const GatedMixParams& p, int64_t chunk) {
  const int64_t begin = chunk * p.pixels / p.chunks, end = (chunk + 1) * p.pixels / p.chunks;
  MMIF_BY_TYPE(p.dtype, gated_mix_forward, p, begin, end)
}

void gated_mix_bwd(const GatedMixParams& p, int64_t chunk) {
  const int64_t begin = chunk * p.pixels / p.chunks, end = (chunk + 1) * p.pixels / p.chunks;
  MMIF_BY_TYPE(p.dtype, gated_mix_backward, p, chunk, begin, end)
}

}  // namespace mmif::MMIF_ISA
