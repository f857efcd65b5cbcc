// The fusion loss on the CPU, forward: one chunk of rows in one pass, rolling through a ring of eleven rows
// per image. Compiled once per instruction set. ../fusion_loss.h has the formulas and their derivation.
#pragma once
#include "fusion_loss_rows.h"

namespace mmif::MMIF_ISA {

// Sums a few vectors lane by lane, then all lanes into a double, in a fixed order.
template <typename T>
struct Sum {
  Vec<T> lanes{};
  double total = 0;
  inline void add(Vec<T> x, Mask<T> use) { lanes += use ? x : Vec<T>{}; }
  inline void flush() {
    for (int i = 0; i < Simd<T>::kLanes; ++i) total += double(lanes[i]);
    lanes = Vec<T>{};
  }
};
constexpr int kFlush = 8;  // vectors that are summed in T before a flush

template <typename T>
struct Sobel {
  Vec<T> x, y;
};
template <typename T>
inline Sobel<T> sobel(const T* above, const T* here, const T* below) {
  const Vec<T> left = load(above - 1), top = load(above), right = load(above + 1);
  const Vec<T> low_left = load(below - 1), bottom = load(below), low_right = load(below + 1);
  const Vec<T> dx = load(here + 1) - load(here - 1);
  const Vec<T> dy = bottom - top;
  return {((right - left) + (low_right - low_left)) + 2 * dx,
          ((low_left - left) + (low_right - right)) + 2 * dy};
}

// Intensity and gradient of one row. rows[image][0..2]: f, a and b above, here and below.
template <typename T, bool weighted>
void edges_row(const T* const rows[3][3], const T* wa_row, const T* wb_row, int64_t width, uint8_t* choices,
               double* sums) {
  Sum<T> intensity, gradient;
  int pending = 0;
  for (int64_t x = 0; x < width; x += Simd<T>::kLanes) {
    const Mask<T> use = inside<T>(x, width);
    const Vec<T> one = Vec<T>{} + 1;
    const Vec<T> wa = weighted ? load(wa_row + x) : one, wb = weighted ? load(wb_row + x) : one;
    const Vec<T> f = load(rows[0][1] + x), a = load(rows[1][1] + x), b = load(rows[2][1] + x);
    const Mask<T> intensity_a = weighted ? wa * a >= wb * b : a >= b;
    const Vec<T> off = f - (intensity_a ? a : b);
    intensity.add(weighted ? (intensity_a ? wa : wb) * absolute<T>(off) : absolute<T>(off), use);

    const Sobel<T> sf = sobel(rows[0][0] + x, rows[0][1] + x, rows[0][2] + x);
    const Sobel<T> sa = sobel(rows[1][0] + x, rows[1][1] + x, rows[1][2] + x);
    const Sobel<T> sb = sobel(rows[2][0] + x, rows[2][1] + x, rows[2][2] + x);
    const Vec<T> strength_a = absolute<T>(sa.x) + absolute<T>(sa.y);
    const Vec<T> strength_b = absolute<T>(sb.x) + absolute<T>(sb.y);
    const Mask<T> gradient_a = weighted ? wa * strength_a >= wb * strength_b : strength_a >= strength_b;
    const Vec<T> off_x = sf.x - (gradient_a ? sa.x : sb.x), off_y = sf.y - (gradient_a ? sa.y : sb.y);
    const Vec<T> both = absolute<T>(off_x) + absolute<T>(off_y);
    gradient.add(weighted ? (gradient_a ? wa : wb) * both : both, use);

    const Vec<T> zero{};
    const Mask<T> bits = ((off > zero) & kIntensityUp) | ((off < zero) & kIntensityDown) |
                         (~intensity_a & kIntensityFromB) | ((off_x > zero) & kHorizontalUp) |
                         ((off_x < zero) & kHorizontalDown) | ((off_y > zero) & kVerticalUp) |
                         ((off_y < zero) & kVerticalDown) | (~gradient_a & kGradientFromB);
    store(choices + x, __builtin_convertvector(bits, Bytes<T>), width - x);
    if (++pending == kFlush) intensity.flush(), gradient.flush(), pending = 0;
  }
  intensity.flush(), gradient.flush();
  sums[0] += intensity.total, sums[1] += gradient.total;
}

enum Mean { kF, kFF, kFA, kFB, kA, kAA, kB, kBB, kMeans };

// The vertical half of the eight means, from the eleven rows of each image around one row.
template <typename T>
void mean_columns(const T* const rows[3][kSsimWindow], const T* weight, int64_t width, Rows<T> out) {
  for (int64_t x = 0; x < width; x += Simd<T>::kLanes) {
    Vec<T> mean[kMeans] = {};
#pragma GCC unroll 11
    for (int k = 0; k < kSsimWindow; ++k) {
      const Vec<T> f = load(rows[0][k] + x), a = load(rows[1][k] + x), b = load(rows[2][k] + x);
      const Vec<T> gf = weight[k] * f, ga = weight[k] * a, gb = weight[k] * b;
      mean[kF] += gf, mean[kFF] += gf * f, mean[kFA] += gf * a, mean[kFB] += gf * b;
      mean[kA] += ga, mean[kAA] += ga * a;
      mean[kB] += gb, mean[kBB] += gb * b;
    }
    for (int m = 0; m < kMeans; ++m) store(out(m) + x, mean[m], Simd<T>::kLanes);
  }
}

// SSIM to one source; by_mean is its derivative by m_f through N1 and D1 alone.
template <typename T>
struct Ssim {
  Vec<T> value, by_mean, by_ff, by_fs;
};
template <typename T>
inline Ssim<T> ssim(Vec<T> mf, Vec<T> ff, Vec<T> ms, Vec<T> ss, Vec<T> fs, T c1, T c2) {
  const Vec<T> n1 = 2 * (mf * ms) + c1, n2 = 2 * (fs - mf * ms) + c2;
  const Vec<T> d1 = mf * mf + ms * ms + c1, d2 = (ff - mf * mf) + (ss - ms * ms) + c2;
  const Vec<T> inverse = T(1) / (d1 * d2), value = n1 * n2 * inverse;
  return {value, 2 * inverse * (ms * n2 - mf * value * d2), -value * d1 * inverse, 2 * n1 * inverse};
}

// Structure and its four derivatives for one row of whole windows; moments[i] is row i's place to write.
template <typename T, bool weighted>
void structure_row(const FusionLossParams& p, Rows<T> means, const T* wa_row, const T* wb_row,
                   const T* weight, int64_t width, T* const moments[4], double* sums) {
  const T c1 = static_cast<T>(p.c1), c2 = static_cast<T>(p.c2);
  Sum<T> structure;
  int pending = 0;
  for (int64_t x = 0; x < width; x += Simd<T>::kLanes) {
    Vec<T> mean[kMeans];
#pragma GCC unroll 8
    for (int m = 0; m < kMeans; ++m) mean[m] = mean_along(means(m) + x, weight);
    const Ssim<T> sa = ssim<T>(mean[kF], mean[kFF], mean[kA], mean[kAA], mean[kFA], c1, c2);
    const Ssim<T> sb = ssim<T>(mean[kF], mean[kFF], mean[kB], mean[kBB], mean[kFB], c1, c2);
    const Vec<T> one = Vec<T>{} + 1, half = one / 2;
    const Vec<T> wa = weighted ? load(wa_row + x) / 2 : half, wb = weighted ? load(wb_row + x) / 2 : half;
    structure.add(wa * (one - sa.value) + wb * (one - sb.value), inside<T>(x, width));
    const Vec<T> by_ff = -(wa * sa.by_ff + wb * sb.by_ff), by_fa = -wa * sa.by_fs, by_fb = -wb * sb.by_fs;
    const Vec<T> by_mean =
        -(wa * sa.by_mean + wb * sb.by_mean) - 2 * mean[kF] * by_ff - mean[kA] * by_fa - mean[kB] * by_fb;
    store(moments[0] + x, by_mean, width - x);
    store(moments[1] + x, by_ff, width - x);
    store(moments[2] + x, by_fa, width - x);
    store(moments[3] + x, by_fb, width - x);
    if (++pending == kFlush) structure.flush(), pending = 0;
  }
  structure.flush();
  sums[2] += structure.total;
}

// The rows of one chunk: sums[3] over their pixels, their choices and moments.
template <typename T, bool weighted>
void forward_chunk(const FusionLossParams& p, int64_t chunk, T* scratch) {
  const int64_t H = p.height, W = p.width, batch = chunk / p.chunks;
  const int64_t begin = chunk % p.chunks * kChunkRows, end = begin + kChunkRows < H ? begin + kChunkRows : H;
  const int64_t valid_height = H - kSsimWindow + 1, valid_width = W - kSsimWindow + 1;
  const FusionLossImage* const images[3] = {&p.f, &p.a, &p.b};
  const Rows<T> rows{scratch, p.pitch};
  const Rows<T> means{rows.base + 3 * kSsimWindow * p.pitch, p.pitch};
  T* const wa_row = means(kMeans);
  T* const wb_row = means(kMeans + 1);
  const auto ring = [&](int image, int64_t y) { return rows(image * kSsimWindow + y % kSsimWindow); };
  T weight[kSsimWindow];
  for (int k = 0; k < kSsimWindow; ++k) weight[k] = static_cast<T>(p.gaussian[k]);
  double* sums = p.partial + 3 * chunk;
  sums[0] = sums[1] = sums[2] = 0;
  int64_t loaded = begin < kSsimEdge ? 0 : begin - kSsimEdge;
  for (int64_t y = begin; y < end; ++y) {
    for (; loaded < H && loaded <= y + kSsimEdge; ++loaded)
      for (int image = 0; image < 3; ++image) load_row(*images[image], batch, loaded, W, ring(image, loaded));
    load_row(p.wa, batch, y, W, wa_row);
    load_row(p.wb, batch, y, W, wb_row);
    const T* near[3][3];
    const T* window[3][kSsimWindow];
    for (int image = 0; image < 3; ++image) {
      for (int k = 0; k < 3; ++k) near[image][k] = ring(image, clamp(y + k - 1, H));
      for (int k = 0; k < kSsimWindow; ++k) window[image][k] = ring(image, y + k + kSsimWindow - kSsimEdge);
    }
    edges_row<T, weighted>(near, wa_row, wb_row, W, p.choices + (batch * H + y) * W, sums);
    if (y < kSsimEdge || y >= H - kSsimEdge) continue;
    T* moments[4];
    for (int m = 0; m < 4; ++m)
      moments[m] =
          static_cast<T*>(p.moments) + ((batch * 4 + m) * valid_height + y - kSsimEdge) * valid_width;
    mean_columns<T>(window, weight, W, means);
    structure_row<T, weighted>(p, means, wa_row + kSsimEdge, wb_row + kSsimEdge, weight, valid_width, moments,
                               sums);
  }
}

void fusion_loss_fwd(const FusionLossParams& p, int64_t chunk, void* scratch) {
  const bool weighted = p.wa.data != nullptr;
  if (p.dtype == DType::kDouble)
    (weighted ? forward_chunk<double, true> : forward_chunk<double, false>)(p, chunk,
                                                                            static_cast<double*>(scratch));
  else
    (weighted ? forward_chunk<float, true> : forward_chunk<float, false>)(p, chunk,
                                                                          static_cast<float*>(scratch));
}

}  // namespace mmif::MMIF_ISA
