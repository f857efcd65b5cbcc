// Shared by both host parts of the fusion loss: checks, outputs, and the params struct.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "check.h"
#include "fusion_loss.h"

namespace mmif {

using FusionLossOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // terms, moments, choices

// The checked arguments, with contiguous rows; owns what the params point to.
struct FusionLossArguments {
  at::Tensor f, a, b, wa, wb;  // wa, wb undefined where not given
  FusionLossParams params{};
};

inline void check_like_f(const char* op, const char* name, const at::Tensor& x, const at::Tensor& f) {
  MMIF_CHECK(op, name, x.sizes(), "f's shape, " + text(f.sizes()), x.sizes() == f.sizes());
  MMIF_CHECK(op, name, x.scalar_type(), "f's dtype, " + text(f.scalar_type()),
             x.scalar_type() == f.scalar_type());
  MMIF_CHECK(op, name, "on " + text(x.device()), "f's device, " + text(f.device()), x.device() == f.device());
}

// A saved tensor or a gradient: its exact shape and dtype, made contiguous in the order `format`, at an address
// that suits its kernels.
inline at::Tensor checked(const char* op, const char* name, const at::Tensor& x, at::IntArrayRef shape,
                          at::ScalarType dtype, const at::Tensor& f,
                          at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  MMIF_CHECK(op, name, x.sizes(), shape, x.sizes() == shape);
  MMIF_CHECK(op, name, x.scalar_type(), dtype, x.scalar_type() == dtype);
  MMIF_CHECK(op, name, "on " + text(x.device()), "f's device, " + text(f.device()), x.device() == f.device());
  const at::Tensor out = x.contiguous(format);
  // Part of a larger tensor may begin anywhere; a tensor of its own begins at a multiple of all vectors.
  const bool vectors = format == at::MemoryFormat::ChannelsLast;
  return vectors && reinterpret_cast<uintptr_t>(out.const_data_ptr()) % 16 ? out.clone() : out;
}

inline at::Tensor contiguous_rows(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

inline FusionLossImage image_of(const at::Tensor& x) {
  return x.defined() ? FusionLossImage{x.const_data_ptr(), x.stride(0), x.stride(2)} : FusionLossImage{};
}

inline void set_gaussian(FusionLossParams& p) {
  constexpr double sigma = 1.5;  // px
  double sum = 0;
  for (int k = 0; k < kSsimWindow; ++k) {
    const double offset = k - kSsimEdge;
    sum += p.gaussian[k] = std::exp(-offset * offset / (2 * sigma * sigma));
  }
  for (double& weight : p.gaussian) weight /= sum;
}

inline FusionLossArguments fusion_loss_arguments(const char* op, const at::Tensor& f, const at::Tensor& a,
                                                 const at::Tensor& b, const std::optional<at::Tensor>& wa,
                                                 const std::optional<at::Tensor>& wb, bool with_double) {
  MMIF_CHECK(op, "f", f.sizes(), "[B, 1, H, W]", f.dim() == 4 && f.size(1) == 1);
  MMIF_CHECK(op, "f", f.sizes(), "H and W of at least " + text(int64_t{kSsimWindow}) + ", the SSIM window",
             f.size(2) >= kSsimWindow && f.size(3) >= kSsimWindow);
  const bool known = f.scalar_type() == at::kFloat || (with_double && f.scalar_type() == at::kDouble);
  MMIF_CHECK(op, "f", f.scalar_type(), with_double ? "float32 and float64" : "float32 on this device", known);
  check_like_f(op, "a", a, f);
  check_like_f(op, "b", b, f);
  FusionLossArguments out{contiguous_rows(f), contiguous_rows(a), contiguous_rows(b), {}, {}};
  if (wa.has_value()) check_like_f(op, "wa", *wa, f);
  if (wb.has_value()) check_like_f(op, "wb", *wb, f);
  if (wa.has_value() || wb.has_value()) {  // the kernels know both or neither
    out.wa = wa.has_value() ? contiguous_rows(*wa) : at::ones(f.sizes(), f.options());
    out.wb = wb.has_value() ? contiguous_rows(*wb) : at::ones(f.sizes(), f.options());
  }
  FusionLossParams& p = out.params;
  p.dtype = f.scalar_type() == at::kDouble ? DType::kDouble : DType::kFloat;
  p.batch = f.size(0), p.height = f.size(2), p.width = f.size(3);
  p.f = image_of(out.f), p.a = image_of(out.a), p.b = image_of(out.b);
  p.wa = image_of(out.wa), p.wb = image_of(out.wb);
  set_gaussian(p);
  return out;
}

inline void set_constants(const char* op, FusionLossParams& p, double c1, double c2) {
  MMIF_CHECK(op, "c1, c2", text(c1) + ", " + text(c2), "more than 0", c1 > 0 && c2 > 0);
  p.c1 = c1, p.c2 = c2;
}

// How a device's kernels lay out the moments: side by side on CUDA, where one vector is one pixel's four.
inline at::MemoryFormat moments_format(const at::Tensor& f) {
  return f.is_cuda() ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline FusionLossOutputs fusion_loss_outputs(FusionLossParams& p, const at::Tensor& f) {
  at::Tensor terms = at::empty({p.batch, 3}, f.options());
  at::Tensor moments = at::empty({p.batch, 4, p.height - kSsimWindow + 1, p.width - kSsimWindow + 1},
                                 f.options(), moments_format(f));
  at::Tensor choices = at::empty({p.batch, 1, p.height, p.width}, f.options().dtype(at::kByte));
  p.terms = terms.data_ptr(), p.moments = moments.data_ptr(), p.choices = choices.data_ptr<uint8_t>();
  return {terms, moments, choices};
}

// Backward's further arguments, checked, and its output.
struct FusionLossGradients {
  at::Tensor d_terms, moments, choices, d_f;
};

inline FusionLossGradients fusion_loss_gradients(const char* op, FusionLossArguments& arguments,
                                                 const at::Tensor& d_terms, const at::Tensor& moments,
                                                 const at::Tensor& choices) {
  FusionLossParams& p = arguments.params;
  const at::Tensor& f = arguments.f;
  const int64_t valid_height = p.height - kSsimWindow + 1, valid_width = p.width - kSsimWindow + 1;
  FusionLossGradients out{checked(op, "d_terms", d_terms, {p.batch, 3}, f.scalar_type(), f),
                          checked(op, "moments", moments, {p.batch, 4, valid_height, valid_width},
                                  f.scalar_type(), f, moments_format(f)),
                          checked(op, "choices", choices, {p.batch, 1, p.height, p.width}, at::kByte, f),
                          at::empty({p.batch, 1, p.height, p.width}, f.options())};
  p.d_terms = out.d_terms.const_data_ptr(), p.moments = out.moments.data_ptr();
  p.choices = out.choices.data_ptr<uint8_t>(), p.d_f = out.d_f.data_ptr();
  return out;
}

}  // namespace mmif
