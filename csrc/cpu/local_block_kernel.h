// LAGN's local block on the CPU, one chunk of rows at a time; compiled once per instruction set.
#pragma once
#include "../local_block.h"
#include "pointwise_kernel.h"

namespace mmif::MMIF_ISA {

// Rows y - 1 to y + 1 of an image, in T, with a zero pixel at either end and zero rows outside the image.
template <typename S, typename T>
struct ThreeRows {
  const S* image;  // [B, H, W, C]
  int64_t height, row;
  int64_t at = -2;  // the middle row, counted through all images
  int channels;
  T* rows[3];

  ThreeRows(const LocalBlockParams& p, const void* image, Arena& arena)
      : image(static_cast<const S*>(image)),
        height(p.height),
        row(p.width * p.layers.channels),
        channels(p.layers.channels) {
    for (T*& r : rows) {
      r = arena.take<T>(row + 2 * channels);
      std::memset(r, 0, (row + 2 * channels) * sizeof(T));
    }
  }

  static int64_t bytes(const LocalBlockParams& p) {
    return 3 * Arena::size<T>((p.width + 2) * p.layers.channels);
  }

  void read(int64_t line, int64_t y, T* to) const {
    const S* from = image + line * row;
    if (y < 0 || y >= height)
      std::memset(to + channels, 0, row * sizeof(T));
    else
      for (int64_t i = 0; i < row; i += Simd<T>::kLanes)
        Simd<T>::store(to + channels + i, load_wide<T>(from + i));
  }

  void move_to(int64_t line) {  // y + H b
    const int64_t y = line % height;
    if (line == at + 1 && y > 0) {
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
// turned: with the kernel rotated by 180 degrees.
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

// The pixels of a tile, and the place of its first one.
struct Tile {
  int64_t pixel;
  int n;
};

inline Tile tile_at(const LocalBlockParams& p, int64_t line, int64_t left) {
  const int64_t rest = p.width - left;
  return {line * p.width + left, static_cast<int>(rest < kTile ? rest : kTile)};
}

template <typename S, typename T>
void local_block_forward(const LocalBlockParams& p, int64_t begin, int64_t end) {
  using V = Simd<T>;
  const int C = p.layers.channels;
  Arena arena(ThreeRows<S, T>::bytes(p) + Pointwise<S, T>::bytes(p.layers) + 2 * Arena::size<T>(kTile * C));
  ThreeRows<S, T> x(p, p.x, arena);
  Pointwise<S, T> layers(p.layers, false, arena);
  T *t = arena.take<T>(kTile * C), *y = arena.take<T>(kTile * C);
  const T *weight = static_cast<const T*>(p.depthwise), *bias = static_cast<const T*>(p.depthwise_bias);
  for (int64_t line = begin; line < end; ++line) {
    x.move_to(line);
    for (int64_t left = 0; left < p.width; left += kTile) {
      const Tile at = tile_at(p, line, left);
      depthwise(x.rows, left, at.n, C, weight, bias, false, t);
      layers.forward(at.n, t, static_cast<S*>(p.u) + at.pixel * p.layers.hidden, y);
      const T* centre = x.rows[1] + (left + 1) * C;
      S* to = static_cast<S*>(p.y) + at.pixel * C;
      for (int i = 0; i < at.n * C; i += V::kLanes)
        store_narrow<T>(V::load(centre + i) + V::load(y + i), to + i);
    }
  }
}

// First pass backward: d_t, and the gradients of both pointwise layers.
template <typename S, typename T>
void local_block_backward_layers(const LocalBlockParams& p, T* sums, int64_t begin, int64_t end) {
  const int C = p.layers.channels, E = p.layers.hidden;
  const PointwiseOffsets at = local_block_offsets(C, E);
  Arena arena(ThreeRows<S, T>::bytes(p) + Pointwise<S, T>::bytes(p.layers) + Arena::size<T>(kTile * C));
  ThreeRows<S, T> x(p, p.x, arena);
  Pointwise<S, T> layers(p.layers, true, arena);
  T* t = arena.take<T>(kTile * C);
  const T *weight = static_cast<const T*>(p.depthwise), *bias = static_cast<const T*>(p.depthwise_bias);
  std::memset(sums, 0, at.end * sizeof(T));
  for (int64_t line = begin; line < end; ++line) {
    x.move_to(line);
    for (int64_t left = 0; left < p.width; left += kTile) {
      const Tile tile = tile_at(p, line, left);
      depthwise(x.rows, left, tile.n, C, weight, bias, false, t);
      layers.backward(tile.n, t, static_cast<const S*>(p.d_y) + tile.pixel * C,
                      static_cast<const S*>(p.u) + tile.pixel * E, at, sums,
                      static_cast<T*>(p.d_t) + tile.pixel * C);
    }
  }
}

// Second pass backward: d_x, and the gradients of the depthwise convolution.
template <typename S, typename T>
void local_block_backward_depthwise(const LocalBlockParams& p, T* sums, int64_t begin, int64_t end) {
  using V = Simd<T>;
  const int C = p.layers.channels;
  Arena arena(ThreeRows<S, T>::bytes(p) + ThreeRows<T, T>::bytes(p) + Arena::size<T>(kTile * C));
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
      for (int k = 0; k <= kTaps; ++k) sum[k] = V::load(sums + k * C + c);  // the bias follows the taps
      for (int64_t i = 0; i < p.width; ++i) {
        const typename V::Vec d = V::load(d_t.rows[1] + (i + 1) * C + c);
        for (int k = 0; k < kTaps; ++k) sum[k] += d * V::load(x.rows[k / 3] + (i + k % 3) * C + c);
        sum[kTaps] += d;
      }
      for (int k = 0; k <= kTaps; ++k) V::store(sums + k * C + c, sum[k]);
    }
  }
}

template <typename S, typename T>
void local_block_backward(const LocalBlockParams& p, int64_t chunk, int64_t begin, int64_t end, bool layers) {
  T* sums = static_cast<T*>(p.partial) + chunk * local_block_offsets(p.layers.channels, p.layers.hidden).end;
  if (layers)
    local_block_backward_layers<S, T>(p, sums, begin, end);
  else
    local_block_backward_depthwise<S, T>(p, sums, begin, end);
}

void local_block_fwd(const LocalBlockParams& p, int64_t chunk) {
  const int64_t lines = p.batch * p.height;
  const int64_t begin = chunk * lines / p.chunks, end = (chunk + 1) * lines / p.chunks;
  MMIF_BY_TYPE(p.dtype, local_block_forward, p, begin, end)
}

// layers: runs the first pass; otherwise the second, which needs the first pass of all chunks.
void local_block_bwd(const LocalBlockParams& p, int64_t chunk, bool layers) {
  const int64_t lines = p.batch * p.height;
  const int64_t begin = chunk * lines / p.chunks, end = (chunk + 1) * lines / p.chunks;
  MMIF_BY_TYPE(p.dtype, local_block_backward, p, chunk, begin, end, layers)
}

}  // namespace mmif::MMIF_ISA
