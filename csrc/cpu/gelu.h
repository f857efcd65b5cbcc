// GELU and its derivative, by the normal distribution Phi and its density phi: u Phi(u), Phi(u) + u phi(u).
#pragma once
#include "simd.h"

namespace mmif::MMIF_ISA {

template <typename T>
struct Gelu {
  typename Simd<T>::Vec value, slope;
};

// Phi(-|u|) = e^(-u^2/2) t P(t) with t = 1 / (1 + 0.3 |u|). P is our minimax fit of degree 7 to Mills'
// ratio over |u| < 13.3 (where the exponential underflows), within 1.3e-7 relative; in float32, Phi is within
// 2.3e-7.
inline Gelu<float> gelu(Simd<float>::Vec u) {
  using Vec = Simd<float>::Vec;
  const Vec size = u < 0 ? -u : u;
  const Vec density = exp_nonpositive(u * u * -0.5f);
  const Vec t = 1.0f / (size * 0.3f + 1.0f);
  Vec p = t * 0.0360365318f - 0.158714498f;
  p = p * t + 0.208965999f;
  p = p * t - 0.0560970654f;
  p = p * t + 0.129843985f;
  p = p * t + 0.0995229086f;
  p = p * t + 0.120816914f;
  p = p * t + 0.119625164f;
  const Vec tail = p * t * density;
  const Vec below = u < 0 ? tail : 1.0f - tail;
  return {u * below, below + u * density * 0.398942280f};
}

inline Gelu<double> gelu(Simd<double>::Vec u) {
  Gelu<double> out;
  for (int i = 0; i < Simd<double>::kLanes; ++i) {
    const double below = 0.5 * std::erfc(u[i] * -0.70710678118654752440);
    out.value[i] = u[i] * below;
    out.slope[i] = below + u[i] * std::exp(u[i] * u[i] * -0.5) * 0.39894228040143267794;
  }
  return out;
}

}  // namespace mmif::MMIF_ISA
