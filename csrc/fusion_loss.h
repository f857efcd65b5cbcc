// The fusion loss in plain types: the host parts check tensors and fill this, the kernels read it.
//
// Forward, at every pixel, with the tie rules of ops/reference.py (">=" takes a, |x|' = 0 at 0):
//
//   intensity  w |f - t|                          t = a where wa a >= wb b, else b; w is that source's weight
//   gradient   w (|f_x - t_x| + |f_y - t_y|)      t = a where wa (|a_x| + |a_y|) >= wb (|b_x| + |b_y|)
//   structure  (wa (1 - S_a) + wb (1 - S_b)) / 2  where the 11 x 11 window is whole
//
// x_x = (d(y-1) + d(y+1)) + 2 d(y) with d(y) = x(y, x+1) - x(y, x-1), rows and columns clamped to the image;
// x_y likewise. There are only subtractions, additions and an exact doubling, in the reference's order, so
// the choices equal the reference's bit for bit, with or without fused multiply-add.
//
// SSIM, with m for a Gaussian mean: D1 = m_f^2 + m_s^2 + C1, D2 = v_f + v_s + C2, N1 = 2 m_f m_s + C1,
// N2 = 2 (E[fs] - m_f m_s) + C2, v_x = E[x^2] - m_x^2, S = N1 N2 / (D1 D2). Holding the other means fixed,
//
//   dS/dE[fs]  = 2 N1 / (D1 D2)
//   dS/dE[f^2] = -S / D2
//   dS/dm_f    = 2 m_s N2 / (D1 D2) - 2 m_f S / D1 - 2 m_f dS/dE[f^2] - m_s dS/dE[fs]
//
// m_f occurs in N1 and D1, which gives the first two terms, and in v_f and the covariance beside E[f^2] and
// E[fs], which gives the last two. Compute the last two from the rounded derivatives that backward reads:
// they are hundreds of times larger than d_f, and only equal errors cancel in 2 f m1 - 2 m_f m1 where f is
// flat. Forward saves the structure term's own derivatives, summed over the sources, as moments[0..3] by m_f,
// E[f^2], E[fa] and E[fb]: with them backward needs no mean of its own. The derivative by f(q) of the mean at
// p is G(p - q), that of f^2's mean 2 f(q) G(p - q), that of f a's mean a(q) G(p - q). With k_i = d_terms[i]
// over the number of its pixels, and moments 0 outside the whole windows,
//
//   d_f = k_2 (G * m0 + 2 f (G * m1) + a (G * m2) + b (G * m3))
//       + k_0 w sign(f - t)
//       + k_1 (transposed Sobel of w sign(f_x - t_x) and of w sign(f_y - t_y))
//
// The transposed Sobel. Smoothing by 1 2 1 with clamped indices is symmetric: it is its own transpose. The
// difference u(x+1) - u(x-1) with clamped indices transposes to s(x-1) - s(x+1) inside. Pixel 0 is subtracted
// at x = 0 and x = 1 and added nowhere: -s(0) - s(1); likewise the last pixel: s(n-2) + s(n-1). That is the
// inner formula with s(-1) = -s(0) and s(n) = -s(n-1). So a sign map is extended by the negative of its
// border along the axis of its difference, and by its border along the other.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace mmif {

constexpr int kSsimWindow = 11, kSsimEdge = kSsimWindow / 2;  // px

// CPU: rows of an image per chunk. They do not depend on the number of threads, so neither does any bit of
// the result.
constexpr int64_t kChunkRows = 32;
// CPU: a thread's scratch memory has kScratchRows rows of FusionLossParams::pitch elements, kScratchEdge
// bytes of them before the row's first column and at least as many after its last. All start as 0.
constexpr int64_t kScratchRows = 64, kScratchEdge = 128;

// All decisions of the forward pass at one pixel, in one byte. Neither up nor down: the difference is 0 or
// NaN, and |x|' is 0. Without a FromB bit the source is a.
constexpr int kIntensityUp = 1;      // f > t
constexpr int kIntensityDown = 2;    // f < t
constexpr int kIntensityFromB = 4;   // t is b
constexpr int kHorizontalUp = 8;     // f_x > t_x
constexpr int kHorizontalDown = 16;  // f_x < t_x
constexpr int kVerticalUp = 32;      // f_y > t_y
constexpr int kVerticalDown = 64;    // f_y < t_y
constexpr int kGradientFromB = 128;  // t is b

// A [B, 1, H, W] image; strides in elements, W is contiguous.
struct FusionLossImage {
  const void* data;  // null for both weights or for neither: 1 everywhere
  int64_t batch_stride, row_stride;
};

struct FusionLossParams {
  DType dtype;                   // of everything but choices: float or double
  int64_t batch, height, width;  // height and width are at least kSsimWindow
  FusionLossImage f, a, b, wa, wb;
  double gaussian[kSsimWindow];  // sums to 1
  double c1, c2;                 // of SSIM; forward only

  // Forward writes, backward reads.
  void* moments;     // [B, 4, H - 10, W - 10], on CUDA channels last, on the CPU contiguous
  uint8_t* choices;  // [B, 1, H, W] contiguous

  // Forward only: the sums over each chunk's pixels; the host adds up an image's chunks in order.
  double* partial;  // [B, chunks, 3] contiguous
  int64_t chunks;   // of one image
  void* terms;      // [B, 3] contiguous

  // Backward only.
  const void* d_terms;  // [B, 3] contiguous
  void* d_f;            // [B, 1, H, W] contiguous

  // CPU only.
  int64_t pitch;  // elements from one row of scratch memory to the next
};

}  // namespace mmif
