// The activations of the pointwise layers and their derivatives; pointwise.h says which.
#pragma once
#include "../pointwise.h"
#include "simd.h"

namespace mmif::MMIF_ISA {

template <typename T>
struct Activated {
  typename Simd<T>::Vec value, slope;
};

// GELU by the normal distribution Phi and its density phi: u Phi(u), Phi(u) + u phi(u).
//
// Phi(-|u|) = e^(-u^2/2) t P(t) with t = 1 / (1 + 0.3 |u|). P is our minimax fit of degree 7 to Mills'
// ratio over |u| < 13.3 (where the exponential underflows), within 1.3e-7 relative; in float32, Phi is within
// 2.3e-7.
inline Activated<float> gelu(Simd<float>::Vec u) {
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

inline Activated<double> gelu(Simd<double>::Vec u) {
  Activated<double> out;
  for (int i = 0; i < Simd<double>::kLanes; ++i) {
    const double below = 0.5 * std::erfc(u[i] * -0.70710678118654752440);
    out.value[i] = u[i] * below;
    out.slope[i] = below + u[i] * std::exp(u[i] * u[i] * -0.5) * 0.39894228040143267794;
  }
  return out;
}

// u s(u) with s(u) = clamp(u + 3, 0, 6) / 6. The slope jumps at -3 and 3; there it is 0 and 1, as in PyTorch.
template <typename T>
inline Activated<T> hardswish(typename Simd<T>::Vec u) {
  using Vec = typename Simd<T>::Vec;
  const Vec none{}, six = Simd<T>::all(6), shifted = u + 3, size = u < 0 ? -u : u;
  const T sixth = T{1} / 6;  // times 6 it is 1 in either type
  const Vec above = shifted < 0 ? none : shifted;
  const Vec share = (above > 6 ? six : above) * sixth;
  return {u * share, share + (size < 3 ? u * sixth : none)};
}

template <Activation kind, typename T>
inline Activated<T> activated(typename Simd<T>::Vec u) {
  if constexpr (kind == Activation::kGelu)
    return gelu(u);
  else
    return hardswish<T>(u);
}

}  // namespace mmif::MMIF_ISA
