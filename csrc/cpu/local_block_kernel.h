// LAGN's local block on the CPU, one chunk of rows at a time; compiled once an instruction set.
//
// A row is worked on in tiles of kTile pixels, whose t, u and h, [pixels][C or E] in T, stay in L1 and L2: both
// pointwise layers are small products there, and no map of E channels but u is ever written.
#pragma once
#include <cstdlib>

#include "../local_block.h"
#include "factors.h"
#include "gelu.h"
#include "half.h"
#include "matrix.h"

namespace mmif::MMIF_ISA {

constexpr int kTile = 32;

// Memory of one chunk, handed out in pieces on whole cache lines.
struct Arena {
  char* memory;
  int64_t used = 0;

  explicit Arena(int64_t bytes) : memory(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Arena() { std::free(memory); }
  Arena(const Arena&) = delete;

  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(memory + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

template <typename S, typename T>
void widen_all(const S* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

// Three rows of an image, y - 1 to y + 1, in T, with a pixel of 0 at either end and rows of 0 beyond it.
template <typename S, typename T>
struct ThreeRows {
  const S* image;  // [B, H, W, C]
  int64_t height, row;
  int64_t at = -2;  // the middle one, counted through all images
  int channels;
  T* rows[3];

  ThreeRows(const LocalBlockParams& p, const void* image, Arena& arena)
      : image(static_cast<const S*>(image)), height(p.height), row(p.width * p.channels), channels(p.channels) {
    for (T*& r : rows) {
      r = arena.take<T>(row + 2 * channels);
      std::memset(r, 0, (row + 2 * channels) * sizeof(T));
    }
  }

  static int64_t bytes(const LocalBlockParams& p) {
    return 3 * ((p.width + 2) * p.channels * static_cast<int64_t>(sizeof(T)) + 64);
  }

  void read(int64_t line, int64_t y, T* to) const {
    if (y < 0 || y >= height)
      std::memset(to + channels, 0, row * sizeof(T));
    else
      widen_all(image + line * row, row, to + channels);
  }

  void move_to(int64_t line) {  // line: y + H b
    const int64_t y = line % height;
    const bool next = line == at + 1 && y > 0;
    if (next) {
      T* first = rows[0];
      rows[0] = rows[1], rows[1] = rows[2], rows[2] = first;
    } else {
      read(line - 1, y - 1, rows[0]);
      read(line, y, rows[1]);
    }
    read(line + 1, y + 1, rows[2]);
    at = line;
  }
};

// to[i] = start + the sum over the taps of weight(tap) x; rows[.] + i C is the left neighbour of pixel i.
// turned: by the kernel turned by 180 degrees.
template <typename T>
void depthwise(T* const rows[3], int64_t from, int count, int channels, const T* weight, const T* start,
               bool turned, T* to) {
  using V = Simd<T>;
  for (int c = 0; c < channels; c += V::kLanes) {
    typename V::Vec w[kTaps];
    for (int k = 0; k < kTaps; ++k) w[k] = V::load(weight + (turned ? kTaps - 1 - k : k) * channels + c);
    const typename V::Vec first = start == nullptr ? typename V::Vec{} : V::load(start + c);
    const T* x[3];
    for (int k = 0; k < 3; ++k) x[k] = rows[k] + from * channels + c;
    for (int i = 0; i < count; ++i) {
      typename V::Vec sum = first;
      for (int k = 0; k < kTaps; ++k) sum += w[k] * V::load(x[k / 3] + (i + k % 3) * channels);
      V::store(to + i * channels + c, sum);
    }
  }
}

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

// The pixels of a tile, and where its first one lies.
struct Tile {
  int64_t pixel, left;
  int n;
};

inline Tile tile_at(const LocalBlockParams& p, int64_t line, int64_t left) {
  const int64_t rest = p.width - left;
  return {line * p.width + left, left, static_cast<int>(rest < kTile ? rest : kTile)};
}

template <typename S, typename T>
void local_block_forward(const LocalBlockParams& p, int64_t begin, int64_t end) {
  using V = Simd<T>;
  using U = typename Factor<S, T>::Unit;
  const int C = p.channels, E = p.hidden, deep_c = units<U>(C), deep_e = units<U>(E);
  const int64_t numbers = kTile * 3 * (C + E) + 2 * C * E;
  Arena arena(ThreeRows<S, T>::bytes(p) + numbers * static_cast<int64_t>(sizeof(T)) + 8 * 64);
  ThreeRows<S, T> x(p, p.x, arena);
  T *t = arena.take<T>(kTile * C), *u = arena.take<T>(kTile * E), *y = arena.take<T>(kTile * C);
  U *t_room = arena.take<U>(kTile * C), *h_room = arena.take<U>(kTile * E);
  const U* w1 = right_factor(static_cast<const T*>(p.expand), C, E, arena.take<U>(C * E));
  const U* w2 = right_factor(static_cast<const T*>(p.reduce), E, C, arena.take<U>(E * C));
  const T *depthwise_weight = static_cast<const T*>(p.depthwise), *b1 = static_cast<const T*>(p.expand_bias);
  const T *depthwise_bias = static_cast<const T*>(p.depthwise_bias), *b2 = static_cast<const T*>(p.reduce_bias);
  for (int64_t line = begin; line < end; ++line) {
    x.move_to(line);
    for (int64_t left = 0; left < p.width; left += kTile) {
      const Tile at = tile_at(p, line, left);
      depthwise(x.rows, left, at.n, C, depthwise_weight, depthwise_bias, false, t);
      product<U, T>(at.n, E, deep_c, left_factor(t, at.n, C, t_room), deep_c, 1, w1, E, b1, 0, u, E);
      S* saved = static_cast<S*>(p.u) + at.pixel * E;
      for (int i = 0; i < at.n * E; i += V::kLanes) {
        const typename V::Vec before = V::load(u + i);
        store_narrow<T>(before, saved + i);
        V::store(u + i, gelu(before).value);
      }
      product<U, T>(at.n, C, deep_e, left_factor(u, at.n, E, h_room), deep_e, 1, w2, C, b2, 0, y, C);
      const T* centre = x.rows[1] + (left + 1) * C;
      S* to = static_cast<S*>(p.y) + at.pixel * C;
      for (int i = 0; i < at.n * C; i += V::kLanes)
        store_narrow<T>(V::load(centre + i) + V::load(y + i), to + i);
    }
  }
}

// First pass backward: d_t, and the gradients of both pointwise layers.
template <typename S, typename T>
void local_block_backward_pointwise(const LocalBlockParams& p, T* partial, int64_t begin, int64_t end) {
  using V = Simd<T>;
  using U = typename Factor<S, T>::Unit;
  const int C = p.channels, E = p.hidden, deep_c = units<U>(C), deep_e = units<U>(E);
  const LocalBlockOffsets sum = local_block_offsets(C, E);
  const int64_t numbers = kTile * 5 * (C + E) + 2 * C * E;
  Arena arena(ThreeRows<S, T>::bytes(p) + numbers * static_cast<int64_t>(sizeof(T)) + 12 * 64);
  ThreeRows<S, T> x(p, p.x, arena);
  T *t = arena.take<T>(kTile * C), *h = arena.take<T>(kTile * E), *d_u = arena.take<T>(kTile * E);
  U *c_room = arena.take<U>(kTile * C), *d_y_room = arena.take<U>(kTile * C);
  U *e_room = arena.take<U>(kTile * E), *d_u_room = arena.take<U>(kTile * E);
  const U* w1 = right_factor(static_cast<const T*>(p.expand_t), E, C, arena.take<U>(C * E));
  const U* w2 = right_factor(static_cast<const T*>(p.reduce_t), C, E, arena.take<U>(E * C));
  const T *weight = static_cast<const T*>(p.depthwise), *bias = static_cast<const T*>(p.depthwise_bias);
  std::memset(partial, 0, sum.end * sizeof(T));
  for (int64_t line = begin; line < end; ++line) {
    x.move_to(line);
    for (int64_t left = 0; left < p.width; left += kTile) {
      const Tile at = tile_at(p, line, left);
      const int n = at.n, deep_n = units<U>(n);
      const S* d_y = static_cast<const S*>(p.d_y) + at.pixel * C;
      const S* u = static_cast<const S*>(p.u) + at.pixel * E;
      product<U, T>(n, E, deep_c, left_factor(d_y, n, C, c_room), deep_c, 1, w2, E, nullptr, 0, d_u, E);
      for (int i = 0; i < n * E; i += V::kLanes) {
        const Gelu<T> g = gelu(load_wide<T>(u + i));
        V::store(h + i, g.value);
        V::store(d_u + i, V::load(d_u + i) * g.slope);
      }
      T *d_w1 = partial + sum.expand, *d_w2 = partial + sum.reduce;
      const U* columns = right_factor(d_y, n, C, d_y_room);
      product<U, T>(E, C, deep_n, right_factor(h, n, E, e_room), 1, E, columns, C, d_w2, C, d_w2, C);
      add_columns(d_y, n, C, partial + sum.reduce_bias);
      depthwise(x.rows, left, n, C, weight, bias, false, t);
      columns = right_factor(d_u, n, E, d_u_room);
      product<U, T>(C, E, deep_n, right_factor(t, n, C, c_room), 1, C, columns, E, d_w1, E, d_w1, E);
      add_columns(d_u, n, E, partial + sum.expand_bias);
      T* d_t = static_cast<T*>(p.d_t) + at.pixel * C;
      product<U, T>(n, C, deep_e, left_factor(d_u, n, E, e_room), deep_e, 1, w1, C, nullptr, 0, d_t, C);
    }
  }
}

// Second pass backward: d_x, and the gradients of the depthwise convolution.
template <typename S, typename T>
void local_block_backward_depthwise(const LocalBlockParams& p, T* partial, int64_t begin, int64_t end) {
  using V = Simd<T>;
  const int C = p.channels;
  static_assert(local_block_offsets(16, 16).depthwise_bias == kTaps * 16);  // as the sums below lie
  Arena arena(ThreeRows<S, T>::bytes(p) + ThreeRows<T, T>::bytes(p) + kTile * C * static_cast<int64_t>(sizeof(T)) +
              64);
  ThreeRows<S, T> x(p, p.x, arena);
  ThreeRows<T, T> d_t(p, p.d_t, arena);
  T* d_x = arena.take<T>(kTile * C);
  const T* weight = static_cast<const T*>(p.depthwise);
  for (int64_t line = begin; line < end; ++line) {
    x.move_to(line), d_t.move_to(line);
    for (int64_t left = 0; left < p.width; left += kTile) {
      const Tile at = tile_at(p, line, left);
      depthwise(d_t.rows, left, at.n, C, weight, static_cast<const T*>(nullptr), true, d_x);
      const S* d_y = static_cast<const S*>(p.d_y) + at.pixel * C;
      S* to = static_cast<S*>(p.d_x) + at.pixel * C;
      for (int i = 0; i < at.n * C; i += V::kLanes)
        store_narrow<T>(load_wide<T>(d_y + i) + V::load(d_x + i), to + i);
    }
    for (int c = 0; c < C; c += V::kLanes) {
      typename V::Vec sum[kTaps + 1];
      for (int k = 0; k <= kTaps; ++k) sum[k] = V::load(partial + k * C + c);  // the bias lies behind the taps
      for (int64_t i = 0; i < p.width; ++i) {
        const typename V::Vec d = V::load(d_t.rows[1] + (i + 1) * C + c);
        for (int k = 0; k < kTaps; ++k) sum[k] += d * V::load(x.rows[k / 3] + (i + k % 3) * C + c);
        sum[kTaps] += d;
      }
      for (int k = 0; k <= kTaps; ++k) V::store(partial + k * C + c, sum[k]);
    }
  }
}

// Calls PASS<S, T>(arguments) for the type of the data.
#define MMIF_BY_TYPE(PASS, ...)                                                 \
  switch (p.dtype) {                                                            \
    case DType::kFloat:                                                         \
      return PASS<float, float>(__VA_ARGS__);                                   \
    case DType::kDouble:                                                        \
      return PASS<double, double>(__VA_ARGS__);                                 \
    case DType::kHalf:                                                          \
      return PASS<Half, float>(__VA_ARGS__);                                    \
    case DType::kBFloat16:                                                      \
      return PASS<BFloat16, float>(__VA_ARGS__);                                \
  }

template <typename S, typename T>
void backward_pass(const LocalBlockParams& p, int64_t chunk, int64_t begin, int64_t end, bool pointwise) {
  T* partial = static_cast<T*>(p.d_weight_partial) + chunk * local_block_offsets(p.channels, p.hidden).end;
  if (pointwise)
    local_block_backward_pointwise<S, T>(p, partial, begin, end);
  else
    local_block_backward_depthwise<S, T>(p, partial, begin, end);
}

void local_block_fwd(const LocalBlockParams& p, int64_t chunk) {
  const int64_t lines = p.batch * p.height, begin = chunk * lines / p.chunks, end = (chunk + 1) * lines / p.chunks;
  MMIF_BY_TYPE(local_block_forward, p, begin, end)
}

void local_block_bwd(const LocalBlockParams& p, int64_t chunk, bool pointwise) {
  const int64_t lines = p.batch * p.height, begin = chunk * lines / p.chunks, end = (chunk + 1) * lines / p.chunks;
  MMIF_BY_TYPE(backward_pass, p, chunk, begin, end, pointwise)
}

#undef MMIF_BY_TYPE

}  // namespace mmif::MMIF_ISA
