// The two pointwise layers on the CPU, a tile of pixels at a time.
//
// A tile's t, u and h, [pixels][C or E] in T, stay in L1 and L2: both layers are small products there, and u
// is the only map of E channels that is written to memory.
#pragma once
#include <cstdlib>

#include "../pointwise.h"
#include "activations.h"
#include "factors.h"
#include "half.h"
#include "matrix.h"

namespace mmif::MMIF_ISA {

constexpr int kTile = 64;

// Memory of one chunk, handed out in pieces that start on cache lines.
struct Arena {
  char* memory;
  int64_t used = 0;

  explicit Arena(int64_t bytes)
      : memory(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Arena() { std::free(memory); }
  Arena(const Arena&) = delete;

  template <typename T>
  static constexpr int64_t size(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(memory + used);
    used += size<T>(count);
    return piece;
  }
};

// sums[c] += the sum over the pixels of x[., c].
template <typename S, typename T>
void add_columns(const S* x, int pixels, int channels, T* sums) {
  using V = Simd<T>;
  for (int c = 0; c < channels; c += V::kLanes) {
    typename V::Vec sum = V::load(sums + c);
    for (int i = 0; i < pixels; ++i) sum += load_wide<T>(x + i * channels + c);
    V::store(sums + c, sum);
  }
}

// S is the stored type, T the computed one.
template <typename S, typename T>
struct Pointwise {
  using V = Simd<T>;
  using U = typename Factor<S, T>::Unit;
  const int C, E, deep_c, deep_e;
  const Activation activation;
  const T *b1, *b2;
  const U *w1, *w2;               // right factors
  T *h, *d_u;                     // [kTile][E]
  U *c_left, *c_right;            // of maps with C channels
  U *e_left, *e_right, *h_right;  // and with E

  Pointwise(const PointwiseParams& p, bool backward, Arena& arena)
      : C(p.channels),
        E(p.hidden),
        deep_c(units<U>(C)),
        deep_e(units<U>(E)),
        activation(p.activation),
        b1(static_cast<const T*>(p.expand_bias)),
        b2(static_cast<const T*>(p.reduce_bias)) {
    const int first = backward ? E : C, second = backward ? C : E;
    w1 = right_factor(static_cast<const T*>(p.expand), first, second, arena.take<U>(C * E));
    w2 = right_factor(static_cast<const T*>(p.reduce), second, first, arena.take<U>(C * E));
    h = arena.take<T>(kTile * E), d_u = arena.take<T>(kTile * E);
    c_left = arena.take<U>(kTile * C), c_right = arena.take<U>(kTile * C);
    e_left = arena.take<U>(kTile * E), e_right = arena.take<U>(kTile * E), h_right = arena.take<U>(kTile * E);
  }

  static int64_t bytes(const PointwiseParams& p) {
    const int64_t C = p.channels, E = p.hidden;
    return 2 * (Arena::size<U>(C * E) + Arena::size<T>(kTile * E) + Arena::size<U>(kTile * C)) +
           3 * Arena::size<U>(kTile * E);
  }

  // h holds u: saves it and puts the activated numbers in its place.
  template <Activation kind>
  void activate(int n, S* u) {
    for (int i = 0; i < n * E; i += V::kLanes) {
      const typename V::Vec before = V::load(h + i);
      store_narrow<T>(before, u + i);
      V::store(h + i, activated<kind, T>(before).value);
    }
  }

  // d_u holds d_h: h and d_u from u.
  template <Activation kind>
  void activate_backward(int n, const S* u) {
    for (int i = 0; i < n * E; i += V::kLanes) {
      const Activated<T> a = activated<kind, T>(load_wide<T>(u + i));
      V::store(h + i, a.value);
      V::store(d_u + i, V::load(d_u + i) * a.slope);
    }
  }

  // y = W2 h + b2 with h the activated u = W1 t + b1, which is saved.
  void forward(int n, const T* t, S* u, T* y) {
    product<U, T>(n, E, deep_c, left_factor(t, n, C, c_left), deep_c, 1, w1, E, b1, 0, h, E);
    if (activation == Activation::kGelu)
      activate<Activation::kGelu>(n, u);
    else
      activate<Activation::kHardswish>(n, u);
    product<U, T>(n, C, deep_e, left_factor(h, n, E, e_left), deep_e, 1, w2, C, b2, 0, y, C);
  }

  // d_t; adds the layers' gradients to the sums.
  void backward(int n, const T* t, const S* d_y, const S* u, const PointwiseOffsets& at, T* sums, T* d_t) {
    product<U, T>(n, E, deep_c, left_factor(d_y, n, C, c_left), deep_c, 1, w2, E, nullptr, 0, d_u, E);
    if (activation == Activation::kGelu)
      activate_backward<Activation::kGelu>(n, u);
    else
      activate_backward<Activation::kHardswish>(n, u);
    // A right factor read with its strides exchanged is the transposed left factor.
    const int deep_n = units<U>(n);
    T *d_w1 = sums + at.expand, *d_w2 = sums + at.reduce;
    const U* right = right_factor(d_y, n, C, c_right);
    product<U, T>(E, C, deep_n, right_factor(h, n, E, h_right), 1, E, right, C, d_w2, C, d_w2, C);
    right = right_factor(d_u, n, E, e_right);
    product<U, T>(C, E, deep_n, right_factor(t, n, C, c_right), 1, C, right, E, d_w1, E, d_w1, E);
    add_columns(d_y, n, C, sums + at.reduce_bias);
    add_columns(d_u, n, E, sums + at.expand_bias);
    product<U, T>(n, C, deep_e, left_factor(d_u, n, E, e_left), deep_e, 1, w1, C, nullptr, 0, d_t, C);
  }
};

// Calls PASS<S, T>(arguments) for the type of the data.
#define MMIF_BY_TYPE(DTYPE, PASS, ...)           \
  switch (DTYPE) {                               \
    case DType::kFloat:                          \
      return PASS<float, float>(__VA_ARGS__);    \
    case DType::kDouble:                         \
      return PASS<double, double>(__VA_ARGS__);  \
    case DType::kHalf:                           \
      return PASS<Half, float>(__VA_ARGS__);     \
    case DType::kBFloat16:                       \
      return PASS<BFloat16, float>(__VA_ARGS__); \
  }

}  // namespace mmif::MMIF_ISA
