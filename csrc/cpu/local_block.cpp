// The host part of LAGN's local block on the CPU: checks, outputs, threads, final sums.
#include "../local_block.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "dispatch.h"
#include "pointwise_host.h"

MMIF_DECLARE(local_block_fwd, const LocalBlockParams& p, int64_t chunk)
MMIF_DECLARE(local_block_bwd, const LocalBlockParams& p, int64_t chunk, bool layers)

namespace mmif {
namespace {

using at::Tensor;

Activation activation_of(const char* op, c10::string_view name) {
  const bool gelu = name == "gelu";
  MMIF_CHECK(op, "activation", std::string(name), "gelu, hardswish", gelu || name == "hardswish");
  return gelu ? Activation::kGelu : Activation::kHardswish;
}

LocalBlockParams local_block_params(const char* op, const Tensor& x, const Tensor& depthwise,
                                    const Tensor& depthwise_bias, const PointwiseWeights& weights,
                                    c10::string_view activation, bool backward, Kept& keep) {
  MMIF_CHECK(op, "x", x.sizes(), "[B, C, H, W]", x.dim() == 4);
  const int64_t C = x.size(1);
  LocalBlockParams p{};
  p.layers = pointwise_params(op, x, C, weights, 2, activation_of(op, activation), backward, keep);
  check_weight(op, "depthwise", depthwise, {C, 1, 3, 3}, x);
  check_weight(op, "depthwise_bias", depthwise_bias, {C}, x);
  p.dtype = dtype_of(op, "x", x);
  p.batch = x.size(0), p.height = x.size(2), p.width = x.size(3);
  const int64_t lines = p.batch * p.height;
  p.chunks = lines < kBlockChunks ? lines : kBlockChunks;
  p.x = keep(channels_last(x));
  p.depthwise = keep(rounded(depthwise, x).flatten(1).t());
  p.depthwise_bias = keep(rounded(depthwise_bias, x));
  return p;
}

std::tuple<Tensor, Tensor> local_block(const Tensor& x, const Tensor& depthwise, const Tensor& depthwise_bias,
                                       const Tensor& expand, const Tensor& expand_bias, const Tensor& reduce,
                                       const Tensor& reduce_bias, c10::string_view activation) {
  Kept keep;
  LocalBlockParams p =
      local_block_params("local_block", x, depthwise, depthwise_bias,
                         {expand, expand_bias, reduce, reduce_bias}, activation, false, keep);
  const Tensor y = at::empty({p.batch, p.height, p.width, p.layers.channels}, x.options());
  const Tensor u = at::empty({p.batch, p.height, p.width, p.layers.hidden}, x.options());
  p.y = y.data_ptr(), p.u = u.data_ptr();
  if (y.numel() > 0) over_chunks(p.chunks, [&](int64_t chunk) { MMIF_DISPATCH(local_block_fwd, p, chunk); });
  return {y.permute({0, 3, 1, 2}), u};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> local_block_bwd(
    const Tensor& d_y, const Tensor& x, const Tensor& depthwise, const Tensor& depthwise_bias,
    const Tensor& expand, const Tensor& expand_bias, const Tensor& reduce, const Tensor& reduce_bias,
    const Tensor& u, c10::string_view activation) {
  constexpr const char* op = "local_block_bwd";
  Kept keep;
  const PointwiseWeights layers{expand, expand_bias, reduce, reduce_bias};
  LocalBlockParams p = local_block_params(op, x, depthwise, depthwise_bias, layers, activation, true, keep);
  const int64_t C = p.layers.channels, E = p.layers.hidden;
  MMIF_CHECK(op, "d_y", d_y.sizes(), "the shape, dtype and device of x",
             d_y.sizes() == x.sizes() && d_y.scalar_type() == x.scalar_type() && d_y.device() == x.device());
  MMIF_CHECK(op, "u", u.sizes(), "[B, H, W, E] contiguous, as forward saved it",
             u.is_contiguous() && u.sizes().equals({p.batch, p.height, p.width, E}) &&
                 u.scalar_type() == x.scalar_type());
  const at::TensorOptions wide = x.options().dtype(wide_type(x));
  const Tensor d_x = at::empty({p.batch, p.height, p.width, C}, x.options());
  const PointwiseOffsets at = local_block_offsets(C, E);
  Tensor sums = at::zeros({at.end}, wide);
  if (d_x.numel() > 0) {
    const Tensor partial = at::empty({p.chunks, at.end}, wide), d_t = at::empty(d_x.sizes(), wide);
    p.d_y = keep(channels_last(d_y)), p.u = u.data_ptr();
    p.d_t = d_t.data_ptr(), p.d_x = d_x.data_ptr(), p.partial = partial.data_ptr();
    for (const bool of_layers : {true, false})
      over_chunks(p.chunks, [&](int64_t chunk) { MMIF_DISPATCH(local_block_bwd, p, chunk, of_layers); });
    sums = partial.sum(0);
  }
  return std::tuple_cat(std::make_tuple(d_x.permute({0, 3, 1, 2}), gradient_of(depthwise, sums, 0, true),
                                        gradient_of(depthwise_bias, sums, kTaps * C, false)),
                        gradients_of(layers, sums, at));
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CPU, m) {
  m.impl("local_block", &mmif::local_block);
  m.impl("local_block_bwd", &mmif::local_block_bwd);
}
