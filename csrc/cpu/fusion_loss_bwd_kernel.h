// The fusion loss on the CPU, backward: d_f of one chunk of rows in one pass over choices and moments.
// Compiled once per instruction set. The derivation is in ../fusion_loss.h.
#pragma once
#include "fusion_loss_rows.h"

namespace mmif::MMIF_ISA {

// A row of choices as three rows: w sign(f - t), w sign(f_x - t_x), w sign(f_y - t_y), the latter two
// extended by a column to both sides for the transposed Sobel.
template <typename T, bool weighted>
void decode_row(const uint8_t* choices, const T* wa_row, const T* wb_row, int64_t width, T* intensity,
                T* horizontal, T* vertical) {
  for (int64_t x = 0; x < width; x += Simd<T>::kLanes) {
    const int64_t left = width - x;
    Bytes<T> bytes{};
    std::memcpy(&bytes, choices + x, static_cast<size_t>(left < Simd<T>::kLanes ? left : Simd<T>::kLanes));
    const Mask<T> bits = __builtin_convertvector(bytes, Mask<T>), none{};
    const Vec<T> zero{}, one = zero + 1;
    const Vec<T> wa = weighted ? load(wa_row + x) : one, wb = weighted ? load(wb_row + x) : one;
    const Vec<T> wi = (bits & kIntensityFromB) != none ? wb : wa,
                 wg = (bits & kGradientFromB) != none ? wb : wa;
    const auto sign = [&](Vec<T> w, Int<T> up, Int<T> down) {
      return (bits & up) != none ? w : (bits & down) != none ? -w : zero;
    };
    Simd<T>::store(intensity + x, sign(wi, kIntensityUp, kIntensityDown));
    Simd<T>::store(horizontal + x, sign(wg, kHorizontalUp, kHorizontalDown));
    Simd<T>::store(vertical + x, sign(wg, kVerticalUp, kVerticalDown));
  }
  horizontal[-1] = -horizontal[0];
  horizontal[width] = -horizontal[width - 1];
  vertical[-1] = vertical[0];
  vertical[width] = vertical[width - 1];
}

// The vertical half of G * m for the four moments, from the eleven rows above one row of the image.
template <typename T>
void moment_columns(const T* const rows[4][kSsimWindow], const T* weight, int64_t width, Rows<T> out) {
  for (int64_t x = 0; x < width; x += Simd<T>::kLanes) {
    Vec<T> sum[4] = {};
#pragma GCC unroll 11
    for (int k = 0; k < kSsimWindow; ++k)
      for (int m = 0; m < 4; ++m) sum[m] += weight[k] * load(rows[m][k] + x);
    for (int m = 0; m < 4; ++m) Simd<T>::store(out(m) + x, sum[m]);
  }
}

// One row of d_f and its inputs.
template <typename T>
struct GradientRow {
  const T *f, *a, *b, *intensity;
  const T* horizontal[3];  // above, here, below
  const T *vertical_above, *vertical_below;
  T sign_above, sign_below;  // -1 outside the image, where the border row is used negated
  T by_intensity, by_gradient, by_structure;
  T* d_f;
};

template <typename T>
void gradient_row(const GradientRow<T>& row, Rows<T> columns, const T* weight, int64_t width) {
  const auto horizontal = [&](int64_t x, int r) {
    return load(row.horizontal[r] + x - 1) - load(row.horizontal[r] + x + 1);
  };
  const auto vertical = [&](int64_t x) {
    return row.sign_above * load(row.vertical_above + x) - row.sign_below * load(row.vertical_below + x);
  };
  for (int64_t x = 0; x < width; x += Simd<T>::kLanes) {
    const Vec<T> sobel = horizontal(x, 0) + 2 * horizontal(x, 1) + horizontal(x, 2) + vertical(x - 1) +
                         2 * vertical(x) + vertical(x + 1);
    Vec<T> mean[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) mean[m] = mean_along(columns(m) + x - kSsimWindow + 1, weight);
    const Vec<T> structure =
        mean[0] + 2 * load(row.f + x) * mean[1] + load(row.a + x) * mean[2] + load(row.b + x) * mean[3];
    const Vec<T> d_f =
        row.by_intensity * load(row.intensity + x) + row.by_gradient * sobel + row.by_structure * structure;
    store(row.d_f + x, d_f, width - x);
  }
}

// The rows of one image that backward keeps in scratch memory, and the functions that fill them.
template <typename T, bool weighted>
struct Ring {
  const FusionLossParams& p;
  int64_t batch;
  Rows<T> rows;

  inline T* moment(int m, int64_t v) const { return rows(m * kSsimWindow + (v + kSsimWindow) % kSsimWindow); }
  inline Rows<T> columns() const { return {rows.base + 4 * kSsimWindow * rows.pitch, rows.pitch}; }
  inline T* other(int i) const { return columns()(4 + i); }  // f, a, b, wa, wb
  inline T* decoded(int i, int64_t y) const { return other(5 + 3 * i + static_cast<int>(y % 3)); }

  // Row v of the moments, or zeros if they have no such row.
  void load_moments(int64_t v) const {
    const int64_t height = p.height - kSsimWindow + 1, width = p.width - kSsimWindow + 1;
    for (int m = 0; m < 4; ++m) {
      const T* from = static_cast<const T*>(p.moments) + ((batch * 4 + m) * height + v) * width;
      if (v >= 0 && v < height)
        std::memcpy(moment(m, v), from, static_cast<size_t>(width) * sizeof(T));
      else
        std::memset(moment(m, v), 0, static_cast<size_t>(width) * sizeof(T));
    }
  }
  void decode(int64_t y) const {
    load_row(p.wa, batch, y, p.width, other(3));
    load_row(p.wb, batch, y, p.width, other(4));
    decode_row<T, weighted>(p.choices + (batch * p.height + y) * p.width, other(3), other(4), p.width,
                            decoded(0, y), decoded(1, y), decoded(2, y));
  }
  void load_images(int64_t y) const {
    load_row(p.f, batch, y, p.width, other(0));
    load_row(p.a, batch, y, p.width, other(1));
    load_row(p.b, batch, y, p.width, other(2));
  }
};

template <typename T, bool weighted>
void backward_chunk(const FusionLossParams& p, int64_t chunk, T* scratch) {
  const int64_t H = p.height, W = p.width, batch = chunk / p.chunks;
  const int64_t begin = chunk % p.chunks * kChunkRows, end = begin + kChunkRows < H ? begin + kChunkRows : H;
  const Ring<T, weighted> ring{p, batch, {scratch, p.pitch}};
  T weight[kSsimWindow];
  for (int k = 0; k < kSsimWindow; ++k) weight[k] = static_cast<T>(p.gaussian[k]);
  const T* d_terms = static_cast<const T*>(p.d_terms) + 3 * batch;
  const T pixels = static_cast<T>(H * W),
          windows = static_cast<T>((H - kSsimWindow + 1) * (W - kSsimWindow + 1));
  for (int64_t v = begin - kSsimWindow + 1; v < begin; ++v) ring.load_moments(v);
  int64_t decoded = begin ? begin - 1 : 0;
  for (int64_t y = begin; y < end; ++y) {
    ring.load_moments(y);
    ring.load_images(y);
    for (; decoded < H && decoded <= y + 1; ++decoded) ring.decode(decoded);
    const T* moments[4][kSsimWindow];
    for (int m = 0; m < 4; ++m)
      for (int k = 0; k < kSsimWindow; ++k) moments[m][k] = ring.moment(m, y - kSsimWindow + 1 + k);
    moment_columns<T>(moments, weight, W - kSsimWindow + 1, ring.columns());
    GradientRow<T> row{};
    row.f = ring.other(0), row.a = ring.other(1), row.b = ring.other(2), row.intensity = ring.decoded(0, y);
    for (int r = 0; r < 3; ++r) row.horizontal[r] = ring.decoded(1, clamp(y + r - 1, H));
    row.vertical_above = ring.decoded(2, clamp(y - 1, H)), row.sign_above = y > 0 ? 1 : -1;
    row.vertical_below = ring.decoded(2, clamp(y + 1, H)), row.sign_below = y < H - 1 ? 1 : -1;
    row.by_intensity = d_terms[0] / pixels, row.by_gradient = d_terms[1] / pixels;
    row.by_structure = d_terms[2] / windows;
    row.d_f = static_cast<T*>(p.d_f) + (batch * H + y) * W;
    gradient_row<T>(row, ring.columns(), weight, W);
  }
}

void fusion_loss_bwd(const FusionLossParams& p, int64_t chunk, void* scratch) {
  const bool weighted = p.wa.data != nullptr;
  if (p.dtype == DType::kDouble)
    (weighted ? backward_chunk<double, true> : backward_chunk<double, false>)(p, chunk,
                                                                              static_cast<double*>(scratch));
  else
    (weighted ? backward_chunk<float, true> : backward_chunk<float, false>)(p, chunk,
                                                                            static_cast<float*>(scratch));
}

}  // namespace mmif::MMIF_ISA
