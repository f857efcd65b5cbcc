// Shared by the host parts of the blocks and the gate: weights in, chunks over threads, gradients out.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "../pointwise.h"
#include "../window_attention_host.h"

namespace mmif {

// CPU: chunks do not depend on the number of threads, so neither does any bit of the result.
constexpr int64_t kBlockChunks = 32;

template <typename Run>
void over_chunks(int64_t chunks, const Run& run) {
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) run(chunk);
  });
}

inline at::Tensor channels_last(const at::Tensor& x) { return x.permute({0, 2, 3, 1}); }  // [B, H, W, C]

// Keeps the tensors alive that params point into.
struct Kept {
  std::vector<at::Tensor> tensors;

  const void* operator()(const at::Tensor& x) {
    return tensors.emplace_back(x.contiguous()).const_data_ptr();
  }
};

inline void check_weight(const char* op, const char* name, const at::Tensor& w, at::IntArrayRef shape,
                         const at::Tensor& x) {
  MMIF_CHECK(op, name, w.sizes(), shape, w.sizes() == shape);
  const bool known = w.scalar_type() == x.scalar_type() || w.scalar_type() == wide_type(x);
  MMIF_CHECK(op, name, w.scalar_type(), "the dtype of x, or float32 beside a half", known);
  MMIF_CHECK(op, name, "on " + text(w.device()), "x's device", w.device() == x.device());
}

// A weight as autocast would use it beside x: rounded to x's type, then widened to the type of the sums.
inline at::Tensor rounded(const at::Tensor& w, const at::Tensor& x) {
  return w.to(x.scalar_type()).to(wide_type(x));
}

// The layers of a block with expand [E, C, ...] and reduce [C, E, ...], each with `trailing` further 1s.
struct PointwiseWeights {
  const at::Tensor &expand, &expand_bias, &reduce, &reduce_bias;
};

inline PointwiseParams pointwise_params(const char* op, const at::Tensor& x, int64_t channels,
                                        const PointwiseWeights& w, size_t trailing, Activation activation,
                                        bool backward, Kept& keep) {
  const size_t dims = 2 + trailing;
  const int64_t C = channels, E = w.expand.dim() > 0 ? w.expand.size(0) : 0;
  MMIF_CHECK(op, "x", x.sizes(), "a multiple of 16 channels", C > 0 && C % 16 == 0);
  MMIF_CHECK(op, "expand", w.expand.sizes(), "[E, C] with E a multiple of 16", E > 0 && E % 16 == 0);
  std::vector<int64_t> expand_shape(dims, 1), reduce_shape(dims, 1);
  expand_shape[0] = E, expand_shape[1] = C, reduce_shape[0] = C, reduce_shape[1] = E;
  check_weight(op, "expand", w.expand, expand_shape, x);
  check_weight(op, "expand_bias", w.expand_bias, {E}, x);
  check_weight(op, "reduce", w.reduce, reduce_shape, x);
  check_weight(op, "reduce_bias", w.reduce_bias, {C}, x);
  const auto matrix = [&](const at::Tensor& weight) {
    const at::Tensor flat = rounded(weight, x).flatten(1);
    return keep(backward ? flat : flat.t());
  };
  PointwiseParams p{};
  p.channels = static_cast<int>(C), p.hidden = static_cast<int>(E);
  p.activation = activation;
  p.expand = matrix(w.expand), p.reduce = matrix(w.reduce);
  p.expand_bias = keep(rounded(w.expand_bias, x)), p.reduce_bias = keep(rounded(w.reduce_bias, x));
  return p;
}

// The gradient of one parameter from the sums, in its shape and type; transposed: the sums hold the
// transpose.
inline at::Tensor gradient_of(const at::Tensor& parameter, const at::Tensor& sums, int64_t from,
                              bool transposed) {
  at::Tensor out = sums.narrow(0, from, parameter.numel());
  if (transposed) out = out.view({parameter.numel() / parameter.size(0), parameter.size(0)}).t();
  return out.to(parameter.scalar_type(), false, true).reshape(parameter.sizes()).contiguous();
}

// Those of the layers: expand, expand_bias, reduce, reduce_bias.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gradients_of(const PointwiseWeights& w,
                                                                               const at::Tensor& sums,
                                                                               const PointwiseOffsets& at) {
  return {
      gradient_of(w.expand, sums, at.expand, true), gradient_of(w.expand_bias, sums, at.expand_bias, false),
      gradient_of(w.reduce, sums, at.reduce, true), gradient_of(w.reduce_bias, sums, at.reduce_bias, false)};
}

}  // namespace mmif
