// Window attention on the CPU, one chunk of windows at a time; compiled once per instruction set.
//
// A window is a rectangle of n = rows x cols <= 64 tokens of the image (fewer at its borders, where part of a
// window lies outside). For one window and head, with everything in L1:
//
//   S = (D^-1/2 Q) K^T + bias      P = softmax(S), row by row      O = P V      lse = log sum exp S
//
// and backward, from lse and d_O, with delta = rowsum(P dP), which is rowsum(d_O O):
//
//   P = exp(S - lse)     dP = d_O V^T     dS = P (dP - delta)
//   d_V = P^T d_O        d_Q = D^-1/2 dS K        d_K = dS^T (D^-1/2 Q)        d_bias = dS, by offset
//
// All products take the form "rows times vectors": the right factor is stored in rows of whole vectors, the
// left one is read number by number at any stride. Columns of S beyond n are kept at 0 after the softmax. In
// whole windows, which nearly all are, the bias and its gradient are [n, n] like S and cost one addition in
// registers; in the others they are looked up by offset.
#pragma once
#include <cstdlib>

#include "../window_attention.h"
#include "half.h"
#include "matrix.h"
#include "simd.h"

namespace mmif::MMIF_ISA {

constexpr int kMaxTokens = 64, kMaxDim = 32, kMaxOffsets = 15 * 15;

// One rectangle of tokens: rows x cols from (y, x) of image b.
struct Window {
  int64_t b, y, x;
  int rows, cols;

  int tokens() const { return rows * cols; }
};

inline int64_t windows_along(int64_t length, int window, int shift) {
  return (length + (shift ? window - shift : 0) + window - 1) / window;
}

inline Window window_at(const WindowAttentionParams& p, int64_t index) {
  const int64_t down = windows_along(p.height, p.window, p.shift);
  const int64_t across = windows_along(p.width, p.window, p.shift);
  const int64_t lead = p.shift ? p.window - p.shift : 0;  // of the first window outside the image
  const int64_t y = index / across % down * p.window - lead, x = index % across * p.window - lead;
  const int64_t top = y < 0 ? 0 : y, left = x < 0 ? 0 : x;
  const int64_t bottom = y + p.window < p.height ? y + p.window : p.height;
  const int64_t right = x + p.window < p.width ? x + p.window : p.width;
  return {index / (across * down), top, left, static_cast<int>(bottom - top), static_cast<int>(right - left)};
}

// The length of a row of n scores, rounded up to whole vectors.
template <typename T>
constexpr int padded(int n) {
  return (n + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
}

template <typename T>
T row_maximum(const T* row, int stride) {
  using V = Simd<T>;
  typename V::Vec top = V::load(row);
  for (int j = V::kLanes; j < stride; j += V::kLanes) {
    const typename V::Vec next = V::load(row + j);
    top = next > top ? next : top;
  }
  return V::maximum(top);
}

// row = exp(row - top); returns the sum.
template <typename T>
T exp_row(T* row, int stride, T top) {
  using V = Simd<T>;
  typename V::Vec sum{};
  for (int j = 0; j < stride; j += V::kLanes) {
    const typename V::Vec e = exp_nonpositive(V::load(row + j) - top);
    V::store(row + j, e);
    sum += e;
  }
  return V::sum(sum);
}

// The bias of one head and its gradient, in two forms. `table` is [2 window - 1][2 window - 1] by dy and by
// the key's x minus the query's, so that along a row of keys it is contiguous; `whole` is [n][stride] for a
// whole window, -infinity (gradient: unused) beyond n.
template <typename T>
struct HeadBias {
  int window, side, n, stride;
  T table[kMaxOffsets], d_table[kMaxOffsets];
  alignas(64) T whole[kMaxTokens * kMaxTokens], d_whole[kMaxTokens * kMaxTokens];

  // Where the offsets of query (y, x) and the keys (ky, 0), (ky, 1), ... begin.
  int at(int y, int x, int ky) const { return (y - ky + window - 1) * side + window - 1 - x; }

  void read(const WindowAttentionParams& p, int head) {
    window = p.window, side = 2 * window - 1, n = window * window, stride = padded<T>(n);
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x)
        table[y * side + side - 1 - x] = static_cast<const T*>(p.bias_table)[(y * side + x) * p.heads + head];
    for (int i = 0; i < n; ++i) {
      T* row = whole + i * stride;
      for (int j = n; j < stride; ++j) row[j] = -INFINITY;
      for (int ky = 0; ky < window; ++ky)
        std::memcpy(row + ky * window, table + at(i / window, i % window, ky), window * sizeof(T));
    }
    std::memset(d_table, 0, sizeof(d_table));
    std::memset(d_whole, 0, sizeof(d_whole));
  }

  // d_bias_partial of one chunk and head, [(2 window - 1)^2] in the order of bias_table.
  void write_gradient(T* to) {
    for (int i = 0; i < n; ++i) add_to_gradient(window, window, i, d_whole + i * stride);
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x) to[y * side + x] = d_table[y * side + side - 1 - x];
  }

  // Adds the bias of query i of a window of rows x cols to its scores; then the same for gradients.
  void add(int rows, int cols, int i, T* score) const {
    for (int ky = 0; ky < rows; ++ky)
      for (int kx = 0; kx < cols; ++kx) score[ky * cols + kx] += table[at(i / cols, i % cols, ky) + kx];
  }
  void add_to_gradient(int rows, int cols, int i, const T* d_score) {
    for (int ky = 0; ky < rows; ++ky)
      for (int kx = 0; kx < cols; ++kx) d_table[at(i / cols, i % cols, ky) + kx] += d_score[ky * cols + kx];
  }
};

// [n][Dim] from the image, times `factor`.
template <int Dim, typename S, typename T>
void load_tokens(const Window& w, const S* from, int64_t y_stride, int64_t x_stride, T factor, T* to) {
  for (int y = 0; y < w.rows; ++y)
    for (int x = 0; x < w.cols; ++x, to += Dim) {
      const S* row = from + y * y_stride + x * x_stride;
      for (int d = 0; d < Dim; ++d) to[d] = widen(row[d]) * factor;
    }
}

// [n][Dim] to the image, row i times factor[i].
template <int Dim, typename S, typename T>
void store_tokens(const Window& w, const T* from, const T* factor, int64_t y_stride, int64_t x_stride,
                  S* to) {
  for (int y = 0; y < w.rows; ++y)
    for (int x = 0; x < w.cols; ++x, from += Dim, ++factor) {
      S* row = to + y * y_stride + x * x_stride;
      for (int d = 0; d < Dim; ++d) narrow(from[d] * *factor, &row[d]);
    }
}

template <typename T>
struct Scratch {
  alignas(64) T q[kMaxTokens * kMaxDim], k[kMaxTokens * kMaxDim], v[kMaxTokens * kMaxDim];
  alignas(64) T kt[kMaxDim * kMaxTokens], vt[kMaxDim * kMaxTokens], d_out[kMaxTokens * kMaxDim];
  alignas(64) T p[kMaxTokens * kMaxTokens], d_p[kMaxTokens * kMaxTokens], out[kMaxTokens * kMaxDim];
  T factor[kMaxTokens];
};

// One window and head: its place in the tensors, and the two passes over it. S is the stored type, T the
// computed one.
template <typename S, typename T, int Dim>
struct HeadWindow {
  using V = Simd<T>;
  const WindowAttentionParams& p;
  const Window w;
  Scratch<T>& s;
  const int n, stride;  // tokens, and the length of a row of scores
  const bool whole;
  const S* part[3];           // q, k, v of the first token
  int64_t out_x, out_y, out;  // strides of out, and its first token
  int64_t lse;                // of the first token

  HeadWindow(const WindowAttentionParams& p, int64_t index, int head, Scratch<T>& s)
      : p(p),
        w(window_at(p, index)),
        s(s),
        n(w.rows * w.cols),
        stride(padded<T>(n)),
        whole(n == p.window * p.window) {
    const int64_t* to = p.qkv_stride;
    const S* qkv = static_cast<const S*>(p.qkv) + w.b * to[0] + w.y * to[1] + w.x * to[2] + head * to[4];
    for (int i = 0; i < 3; ++i) part[i] = qkv + i * to[3];
    out_x = static_cast<int64_t>(p.heads) * Dim, out_y = p.width * out_x;
    out = w.b * p.height * out_y + w.y * out_y + w.x * out_x + head * Dim;
    lse = ((w.b * p.heads + head) * p.height + w.y) * p.width + w.x;
  }

  void load(int i, T factor, T* to) const {
    load_tokens<Dim>(w, part[i], p.qkv_stride[1], p.qkv_stride[2], factor, to);
  }

  T& lse_of(int i) const { return static_cast<T*>(p.lse)[lse + i / w.cols * p.width + i % w.cols]; }

  // S into s.p; loads q (scaled) and k on the way.
  void scores(const HeadBias<T>& bias) {
    load(0, static_cast<T>(p.scale), s.q);
    load(1, 1, s.k);
    transpose(n, Dim, stride, s.k, s.kt);
    product<T, T>(n, stride, Dim, s.q, Dim, 1, s.kt, stride, whole ? bias.whole : nullptr, stride, s.p,
                  stride);
    if (whole) return;
    for (int i = 0; i < n; ++i) {
      bias.add(w.rows, w.cols, i, s.p + i * stride);
      for (int j = n; j < stride; ++j) s.p[i * stride + j] = -INFINITY;
    }
  }

  void forward(const HeadBias<T>& bias) {
    scores(bias);
    load(2, 1, s.v);
    for (int i = 0; i < n; ++i) {
      T* row = s.p + i * stride;
      const T top = row_maximum(row, stride), sum = exp_row(row, stride, top);
      lse_of(i) = top + std::log(sum);
      s.factor[i] = 1 / sum;
    }
    product<T, T>(n, Dim, n, s.p, stride, 1, s.v, Dim, nullptr, 0, s.out, Dim);
    store_tokens<Dim>(w, s.out, s.factor, out_y, out_x, static_cast<S*>(p.out) + out);
  }

  // From P and dP to dS, in s.d_p; adds it to the gradient of the bias.
  void score_gradients(HeadBias<T>& bias) {
    for (int i = 0; i < n; ++i) {
      T *prob = s.p + i * stride, *d_prob = s.d_p + i * stride, *d_bias = bias.d_whole + i * stride;
      exp_row(prob, stride, lse_of(i));
      typename V::Vec dot{};
      for (int j = 0; j < stride; j += V::kLanes) dot += V::load(prob + j) * V::load(d_prob + j);
      const T delta = V::sum(dot);
      for (int j = 0; j < stride; j += V::kLanes) {
        const typename V::Vec d_score = V::load(prob + j) * (V::load(d_prob + j) - delta);
        V::store(d_prob + j, d_score);
        if (whole) V::store(d_bias + j, V::load(d_bias + j) + d_score);
      }
      if (!whole) bias.add_to_gradient(w.rows, w.cols, i, d_prob);
    }
  }

  void backward(int head, HeadBias<T>& bias) {
    scores(bias);
    load(2, 1, s.v);
    transpose(n, Dim, stride, s.v, s.vt);
    const int64_t* g = p.d_out_stride;
    const S* d_out = static_cast<const S*>(p.d_out) + w.b * g[0] + w.y * g[1] + w.x * g[2] + head * g[3];
    load_tokens<Dim>(w, d_out, g[1], g[2], T{1}, s.d_out);
    product<T, T>(n, stride, Dim, s.d_out, Dim, 1, s.vt, stride, nullptr, 0, s.d_p, stride);
    score_gradients(bias);

    const int64_t x = 3 * out_x, y = p.width * x;  // strides of d_qkv
    S* to = static_cast<S*>(p.d_qkv) + w.b * p.height * y + w.y * y + w.x * x + head * Dim;
    gradient(s.d_p, stride, 1, s.k, static_cast<T>(p.scale), y, x, to);
    gradient(s.d_p, 1, stride, s.q, 1, y, x, to + out_x);
    gradient(s.p, 1, stride, s.d_out, 1, y, x, to + 2 * out_x);
  }

  // to = factor A B, where A is [n, n] at the given strides and B is [n][Dim].
  void gradient(const T* a, int64_t a_row, int64_t a_k, const T* b, T factor, int64_t y, int64_t x, S* to) {
    product<T, T>(n, Dim, n, a, a_row, a_k, b, Dim, nullptr, 0, s.out, Dim);
    for (int i = 0; i < n; ++i) s.factor[i] = factor;
    store_tokens<Dim>(w, s.out, s.factor, y, x, to);
  }
};

// The biases of all heads, so that the heads of a token, which are adjacent in memory, are visited in turn.
template <typename T>
struct AllBiases {
  HeadBias<T>* heads;

  explicit AllBiases(const WindowAttentionParams& p)
      : heads(static_cast<HeadBias<T>*>(std::aligned_alloc(64, p.heads * sizeof(HeadBias<T>)))) {
    for (int head = 0; head < p.heads; ++head) heads[head].read(p, head);
  }
  ~AllBiases() { std::free(heads); }
};

template <typename S, typename T, int Dim>
void forward_windows(const WindowAttentionParams& p, int64_t, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const AllBiases<T> bias(p);
  for (int64_t i = begin; i < end; ++i)
    for (int head = 0; head < p.heads; ++head)
      HeadWindow<S, T, Dim>(p, i, head, scratch).forward(bias.heads[head]);
}

template <typename S, typename T, int Dim>
void backward_windows(const WindowAttentionParams& p, int64_t chunk, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const AllBiases<T> bias(p);
  for (int64_t i = begin; i < end; ++i)
    for (int head = 0; head < p.heads; ++head)
      HeadWindow<S, T, Dim>(p, i, head, scratch).backward(head, bias.heads[head]);
  const int offsets = (2 * p.window - 1) * (2 * p.window - 1);
  for (int head = 0; head < p.heads; ++head)
    bias.heads[head].write_gradient(static_cast<T*>(p.d_bias_partial) + (chunk * p.heads + head) * offsets);
}

inline int64_t window_count(const WindowAttentionParams& p) {
  return p.batch * windows_along(p.height, p.window, p.shift) * windows_along(p.width, p.window, p.shift);
}

void window_attention_set_chunks(WindowAttentionParams& p, int64_t most) {
  const int64_t n = window_count(p);
  p.chunks = n < most ? n : most;
}

// Calls PASS<S, T, Dim> for the windows of one chunk.
#define MMIF_CHUNK(PASS)                                                                                  \
  const int64_t n = window_count(p), begin = chunk * n / p.chunks, end = (chunk + 1) * n / p.chunks;      \
  const bool narrow_head = p.head_dim == 16;                                                              \
  switch (p.dtype) {                                                                                      \
    case DType::kFloat:                                                                                   \
      return (narrow_head ? PASS<float, float, 16> : PASS<float, float, 32>)(p, chunk, begin, end);       \
    case DType::kDouble:                                                                                  \
      return (narrow_head ? PASS<double, double, 16> : PASS<double, double, 32>)(p, chunk, begin, end);   \
    case DType::kHalf:                                                                                    \
      return (narrow_head ? PASS<Half, float, 16> : PASS<Half, float, 32>)(p, chunk, begin, end);         \
    case DType::kBFloat16:                                                                                \
      return (narrow_head ? PASS<BFloat16, float, 16> : PASS<BFloat16, float, 32>)(p, chunk, begin, end); \
  }

void window_attention_fwd(const WindowAttentionParams& p, int64_t chunk) { MMIF_CHUNK(forward_windows) }

void window_attention_bwd(const WindowAttentionParams& p, int64_t chunk) { MMIF_CHUNK(backward_windows) }

#undef MMIF_CHUNK

}  // namespace mmif::MMIF_ISA
