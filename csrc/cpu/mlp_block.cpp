// The host part of the second half of LAGN's global block on the CPU: checks, outputs, threads, final
// sums.
#include "../mlp_block.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "dispatch.h"
#include "pointwise_host.h"

MMIF_DECLARE(mlp_block_fwd, const MlpBlockParams& p, int64_t chunk)
MMIF_DECLARE(mlp_block_bwd, const MlpBlockParams& p, int64_t chunk)

namespace mmif {
namespace {

using at::Tensor;

MlpBlockParams mlp_block_params(const char* op, const Tensor& x, const Tensor& norm_weight,
                                const Tensor& norm_bias, const PointwiseWeights& weights, double eps,
                                bool backward, Kept& keep) {
  MMIF_CHECK(op, "x", x.sizes(), "[..., C]", x.dim() > 0);
  MMIF_CHECK(op, "eps", eps, "more than 0", eps > 0);
  const int64_t C = x.size(-1);
  MlpBlockParams p{};
  p.layers = pointwise_params(op, x, C, weights, 0, Activation::kGelu, backward, keep);
  check_weight(op, "norm_weight", norm_weight, {C}, x);
  check_weight(op, "norm_bias", norm_bias, {C}, x);
  p.dtype = dtype_of(op, "x", x);
  p.tokens = x.numel() / C;
  p.eps = eps;
  p.chunks = p.tokens < kBlockChunks ? p.tokens : kBlockChunks;
  p.x = keep(x);
  p.norm_weight = keep(norm_weight.to(wide_type(x)));  // autocast does not round a norm's weights
  p.norm_bias = keep(norm_bias.to(wide_type(x)));
  return p;
}

std::tuple<Tensor, Tensor> mlp_block(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias,
                                     const Tensor& expand, const Tensor& expand_bias, const Tensor& reduce,
                                     const Tensor& reduce_bias, double eps) {
  Kept keep;
  MlpBlockParams p = mlp_block_params("mlp_block", x, norm_weight, norm_bias,
                                      {expand, expand_bias, reduce, reduce_bias}, eps, false, keep);
  const Tensor y = at::empty(x.sizes(), x.options());
  const Tensor u = at::empty({p.tokens, p.layers.hidden}, x.options());
  p.y = y.data_ptr(), p.u = u.data_ptr();
  if (p.tokens > 0) over_chunks(p.chunks, [&](int64_t chunk) { MMIF_DISPATCH(mlp_block_fwd, p, chunk); });
  return {y, u};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlp_block_bwd(
    const Tensor& d_y, const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias,
    const Tensor& expand, const Tensor& expand_bias, const Tensor& reduce, const Tensor& reduce_bias,
    const Tensor& u, double eps) {
  constexpr const char* op = "mlp_block_bwd";
  Kept keep;
  const PointwiseWeights layers{expand, expand_bias, reduce, reduce_bias};
  MlpBlockParams p = mlp_block_params(op, x, norm_weight, norm_bias, layers, eps, true, keep);
  const int64_t C = p.layers.channels, E = p.layers.hidden;
  MMIF_CHECK(op, "d_y", d_y.sizes(), "the shape, dtype and device of x",
             d_y.sizes() == x.sizes() && d_y.scalar_type() == x.scalar_type() && d_y.device() == x.device());
  MMIF_CHECK(op, "u", u.sizes(), "[tokens, E] contiguous, as forward saved it",
             u.is_contiguous() && u.sizes().equals({p.tokens, E}) && u.scalar_type() == x.scalar_type());
  const at::TensorOptions wide = x.options().dtype(wide_type(x));
  const Tensor d_x = at::empty(x.sizes(), x.options());
  const PointwiseOffsets at = mlp_block_offsets(C, E);
  Tensor sums = at::zeros({at.end}, wide);
  if (p.tokens > 0) {
    const Tensor partial = at::empty({p.chunks, at.end}, wide);
    p.d_y = keep(d_y), p.u = u.data_ptr(), p.d_x = d_x.data_ptr(), p.partial = partial.data_ptr();
    over_chunks(p.chunks, [&](int64_t chunk) { MMIF_DISPATCH(mlp_block_bwd, p, chunk); });
    sums = partial.sum(0);
  }
  return std::tuple_cat(
      std::make_tuple(d_x, gradient_of(norm_weight, sums, 0, false), gradient_of(norm_bias, sums, C, false)),
      gradients_of(layers, sums, at));
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CPU, m) {
  m.impl("mlp_block", &mmif::mlp_block);
  m.impl("mlp_block_bwd", &mmif::mlp_block_bwd);
}
