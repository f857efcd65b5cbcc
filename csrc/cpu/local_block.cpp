// The host part of LAGN's local block on the CPU: checks, outputs, threads, the last sums. There is no CUDA
// kernel: cuDNN's and cuBLAS's fused epilogues serve a card.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../local_block.h"
#include "../window_attention_host.h"
#include "dispatch.h"

MMIF_DECLARE(local_block_fwd, const LocalBlockParams& p, int64_t chunk)
MMIF_DECLARE(local_block_bwd, const LocalBlockParams& p, int64_t chunk, bool pointwise)

namespace mmif {
namespace {

// Chunks do not depend on the number of threads, so neither does any bit of the result.
constexpr int64_t kChunks = 32;

at::Tensor channels_last(const at::Tensor& x) { return x.permute({0, 2, 3, 1}).contiguous(); }  // [B, H, W, C]

// The checked arguments; it owns what the params point to.
struct LocalBlockArguments {
  std::vector<at::Tensor> owned;
  LocalBlockParams params{};

  const void* keep(const at::Tensor& x) { return owned.emplace_back(x).const_data_ptr(); }
};

void check_weight(const char* op, const char* name, const at::Tensor& w, at::IntArrayRef shape,
                  const at::Tensor& x) {
  MMIF_CHECK(op, name, w.sizes(), shape, w.sizes() == shape);
  const bool known = w.scalar_type() == x.scalar_type() || w.scalar_type() == wide_type(x);
  MMIF_CHECK(op, name, w.scalar_type(), "the dtype of x, or float32 beside a half", known);
  MMIF_CHECK(op, name, c10::str("on ", w.device()), "x's device", w.device() == x.device());
}

// expand and reduce lie transposed for forward, as they came for backward.
LocalBlockArguments local_block_arguments(const char* op, const at::Tensor& x, const at::Tensor& depthwise,
                                          const at::Tensor& depthwise_bias, const at::Tensor& expand,
                                          const at::Tensor& expand_bias, const at::Tensor& reduce,
                                          const at::Tensor& reduce_bias, bool backward) {
  MMIF_CHECK(op, "x", x.sizes(), "[B, C, H, W] with C a multiple of 16",
             x.dim() == 4 && x.size(1) > 0 && x.size(1) % 16 == 0);
  const int64_t C = x.size(1);
  MMIF_CHECK(op, "expand", expand.sizes(), "[E, C, 1, 1] with E a multiple of 16",
             expand.dim() == 4 && expand.size(0) > 0 && expand.size(0) % 16 == 0);
  const int64_t E = expand.size(0);
  check_weight(op, "depthwise", depthwise, {C, 1, 3, 3}, x);
  check_weight(op, "depthwise_bias", depthwise_bias, {C}, x);
  check_weight(op, "expand", expand, {E, C, 1, 1}, x);
  check_weight(op, "expand_bias", expand_bias, {E}, x);
  check_weight(op, "reduce", reduce, {C, E, 1, 1}, x);
  check_weight(op, "reduce_bias", reduce_bias, {C}, x);

  LocalBlockArguments out;
  LocalBlockParams& p = out.params;
  p.dtype = dtype_of(op, "x", x);
  p.batch = x.size(0), p.height = x.size(2), p.width = x.size(3);
  p.channels = static_cast<int>(C), p.hidden = static_cast<int>(E);
  const int64_t lines = p.batch * p.height;
  p.chunks = lines < kChunks ? lines : kChunks;
  // As autocast has it, a half's weights are rounded to it; the sums are as wide as ever.
  const auto rounded = [&](const at::Tensor& w) { return w.to(x.scalar_type()).to(wide_type(x)); };
  const auto matrix = [&](const at::Tensor& w, bool transposed) {
    const at::Tensor flat = rounded(w).flatten(1);
    return out.keep((transposed ? flat.t() : flat).contiguous());
  };
  p.x = out.keep(channels_last(x));
  p.depthwise = matrix(depthwise, true);
  p.depthwise_bias = out.keep(rounded(depthwise_bias).contiguous());
  p.expand_bias = out.keep(rounded(expand_bias).contiguous());
  p.reduce_bias = out.keep(rounded(reduce_bias).contiguous());
  if (backward) {
    p.expand_t = matrix(expand, false), p.reduce_t = matrix(reduce, false);
  } else {
    p.expand = matrix(expand, true), p.reduce = matrix(reduce, true);
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> local_block(const at::Tensor& x, const at::Tensor& depthwise,
                                               const at::Tensor& depthwise_bias, const at::Tensor& expand,
                                               const at::Tensor& expand_bias, const at::Tensor& reduce,
                                               const at::Tensor& reduce_bias) {
  const LocalBlockArguments arguments = local_block_arguments(
      "local_block", x, depthwise, depthwise_bias, expand, expand_bias, reduce, reduce_bias, false);
  LocalBlockParams p = arguments.params;
  const at::Tensor y = at::empty({p.batch, p.height, p.width, p.channels}, x.options());
  const at::Tensor u = at::empty({p.batch, p.height, p.width, p.hidden}, x.options());
  p.y = y.data_ptr(), p.u = u.data_ptr();
  if (y.numel() > 0)
    at::parallel_for(0, p.chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) MMIF_DISPATCH(local_block_fwd, p, chunk);
    });
  return {y.permute({0, 3, 1, 2}), u};
}

using LocalBlockGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

LocalBlockGradients local_block_bwd(const at::Tensor& d_y, const at::Tensor& x, const at::Tensor& depthwise,
                                    const at::Tensor& depthwise_bias, const at::Tensor& expand,
                                    const at::Tensor& expand_bias, const at::Tensor& reduce,
                                    const at::Tensor& reduce_bias, const at::Tensor& u) {
  constexpr const char* op = "local_block_bwd";
  LocalBlockArguments arguments = local_block_arguments(op, x, depthwise, depthwise_bias, expand, expand_bias,
                                                        reduce, reduce_bias, true);
  LocalBlockParams& p = arguments.params;
  const int64_t C = p.channels, E = p.hidden;
  MMIF_CHECK(op, "d_y", d_y.sizes(), "the shape, dtype and device of x",
             d_y.sizes() == x.sizes() && d_y.scalar_type() == x.scalar_type() && d_y.device() == x.device());
  MMIF_CHECK(op, "u", u.sizes(), "[B, H, W, E] contiguous, as forward saved it",
             u.is_contiguous() && u.sizes().equals({p.batch, p.height, p.width, E}) &&
                 u.scalar_type() == x.scalar_type());
  const at::Tensor d_x = at::empty({p.batch, p.height, p.width, C}, x.options());
  const at::TensorOptions wide = x.options().dtype(wide_type(x));
  const LocalBlockOffsets at = local_block_offsets(C, E);
  at::Tensor sums = at::zeros({at.end}, wide);
  if (d_x.numel() > 0) {
    const at::Tensor partial = at::empty({p.chunks, at.end}, wide);
    const at::Tensor d_t = at::empty(d_x.sizes(), wide);
    p.d_y = arguments.keep(channels_last(d_y));
    p.u = u.data_ptr(), p.d_t = d_t.data_ptr(), p.d_x = d_x.data_ptr();
    p.d_weight_partial = partial.data_ptr();
    for (const bool pointwise : {true, false})
      at::parallel_for(0, p.chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) MMIF_DISPATCH(local_block_bwd, p, chunk, pointwise);
      });
    sums = partial.sum(0);
  }
  const auto vector = [&](int64_t from, const at::Tensor& like) {
    return sums.narrow(0, from, like.numel()).to(like.scalar_type(), false, true);
  };
  const auto matrix = [&](int64_t from, const at::Tensor& like) {  // lies transposed
    return sums.narrow(0, from, like.numel())
        .view({like.numel() / like.size(0), like.size(0)})
        .t()
        .contiguous()
        .view(like.sizes())
        .to(like.scalar_type());
  };
  return {d_x.permute({0, 3, 1, 2}),
          matrix(at.depthwise, depthwise),
          vector(at.depthwise_bias, depthwise_bias),
          matrix(at.expand, expand),
          vector(at.expand_bias, expand_bias),
          matrix(at.reduce, reduce),
          vector(at.reduce_bias, reduce_bias)};
}

}  // namespace
}  // namespace mmif

TORCH_LIBRARY_IMPL(mmif_trt, CPU, m) {
  m.impl("local_block", &mmif::local_block);
  m.impl("local_block_bwd", &mmif::local_block_bwd);
}
