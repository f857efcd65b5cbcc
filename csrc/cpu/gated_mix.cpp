// The host part of LAGN's gate on the CPU: checks, outputs, threads, final sums.
#include "../gated_mix.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "dispatch.h"
#include "pointwise_host.h"

MMIF_DECLARE(gated_mix_fwd, const GatedMixParams& p, int64_t chunk)
MMIF_DECLARE(gated_mix_bwd, const GatedMixParams& p, int64_t chunk)

namespace mmif {
namespace {

using at::Tensor;

void check_like_local(const char* op, const char* name, const Tensor& x, const Tensor& local) {
  MMIF_CHECK(
      op, name, x.sizes(), "the shape, dtype and device of local",
      x.sizes() == local.sizes() && x.scalar_type() == local.scalar_type() && x.device() == local.device());
}

GatedMixParams gated_mix_params(const char* op, const Tensor& local, const Tensor& global,
                                const Tensor& weight, const Tensor& bias, bool backward, Kept& keep) {
  MMIF_CHECK(op, "local", local.sizes(), "[B, C, H, W] with C a multiple of 16",
             local.dim() == 4 && local.size(1) > 0 && local.size(1) % 16 == 0);
  check_like_local(op, "global", global, local);
  const int64_t C = local.size(1);
  check_weight(op, "weight", weight, {C, 2 * C, 1, 1}, local);
  check_weight(op, "bias", bias, {C}, local);
  GatedMixParams p{};
  p.dtype = dtype_of(op, "local", local);
  p.pixels = local.numel() / C, p.channels = static_cast<int>(C);
  p.chunks = p.pixels < kBlockChunks ? p.pixels : kBlockChunks;
  p.local = keep(channels_last(local)), p.global = keep(channels_last(global));
  const auto half = [&](int64_t from) {
    const Tensor matrix = rounded(weight, local).flatten(1).narrow(1, from, C);
    return keep(backward ? matrix : matrix.t());
  };
  p.local_weight = half(0), p.global_weight = half(C);
  p.bias = keep(rounded(bias, local));
  return p;
}

std::tuple<Tensor, Tensor> gated_mix(const Tensor& local, const Tensor& global, const Tensor& weight,
                                     const Tensor& bias) {
  Kept keep;
  GatedMixParams p = gated_mix_params("gated_mix", local, global, weight, bias, false, keep);
  const Tensor y = at::empty({local.size(0), local.size(2), local.size(3), p.channels}, local.options());
  const Tensor share = at::empty(y.sizes(), local.options());
  p.y = y.data_ptr(), p.share = share.data_ptr();
  if (p.pixels > 0) over_chunks(p.chunks, [&](int64_t chunk) { MMIF_DISPATCH(gated_mix_fwd, p, chunk); });
  return {y.permute({0, 3, 1, 2}), share};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_mix_bwd(const Tensor& d_y, const Tensor& local,
                                                         const Tensor& global, const Tensor& weight,
                                                         const Tensor& bias, const Tensor& share) {
  constexpr const char* op = "gated_mix_bwd";
  Kept keep;
  GatedMixParams p = gated_mix_params(op, local, global, weight, bias, true, keep);
  const int64_t C = p.channels;
  check_like_local(op, "d_y", d_y, local);
  MMIF_CHECK(op, "share", share.sizes(), "[B, H, W, C] contiguous, as forward saved it",
             share.is_contiguous() &&
                 share.sizes().equals({local.size(0), local.size(2), local.size(3), C}) &&
                 share.scalar_type() == local.scalar_type());
  const Tensor d_local = at::empty(share.sizes(), share.options()), d_global = at::empty_like(d_local);
  const at::TensorOptions wide = local.options().dtype(wide_type(local));
  Tensor sums = at::zeros({(2 * C + 1) * C}, wide);
  if (p.pixels > 0) {
    const Tensor partial = at::empty({p.chunks, (2 * C + 1) * C}, wide);
    p.d_y = keep(channels_last(d_y)), p.share = share.data_ptr();
    p.d_local = d_local.data_ptr(), p.d_global = d_global.data_ptr(), p.partial = partial.data_ptr();
    over_chunks(p.chunks, [&](int64_t chunk) { MMIF_DISPATCH(gated_mix_bwd, p, chunk); });
    sums = partial.sum(0);
  }
  const Tensor halves = sums.narrow(0, 0, 2 * C * C).view({2, C, C}).transpose(0, 1).reshape(weight.sizes());
  return {d_local.permute({0, 3, 1, 2}), d_global.permute({0, 3, 1, 2}), halves.to(weight.scalar_type()),
          gradient_of(bias, sums, 2 * C * C, false)};
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CPU, m) {
  m.impl("gated_mix", &mmif::gated_mix);
  m.impl("gated_mix_bwd", &mmif::gated_mix_bwd);
}
