// The schemas of torch.ops.mmif_trt. Importing mmif_trt._C registers them; the implementations register
// themselves, one per device, in cpu/ and cuda/. The fake and autograd parts are in Python (mmif_trt/ops).
#include <pybind11/pybind11.h>
#include <torch/library.h>

TORCH_LIBRARY(mmif_trt, m) {
  m.def("window_attention(Tensor qkv, Tensor bias_table, int window, int shift) -> (Tensor out, Tensor lse)");
  m.def(
      "window_attention_bwd(Tensor d_out, Tensor qkv, Tensor bias_table, Tensor out, Tensor lse, int window, "
      "int shift) -> (Tensor d_qkv, Tensor d_bias_table)");
  m.def(
      "fusion_loss(Tensor f, Tensor a, Tensor b, Tensor? wa, Tensor? wb, float c1=0.0001, float c2=0.0009) "
      "-> (Tensor terms, Tensor moments, "
      "Tensor choices)");
  m.def(
      "fusion_loss_bwd(Tensor d_terms, Tensor f, Tensor a, Tensor b, Tensor? wa, Tensor? wb, Tensor moments, "
      "Tensor choices) -> Tensor d_f");
  m.def(
      "local_block(Tensor x, Tensor depthwise, Tensor depthwise_bias, Tensor expand, Tensor expand_bias, "
      "Tensor reduce, Tensor reduce_bias, str activation) -> (Tensor y, Tensor u)");
  m.def(
      "local_block_bwd(Tensor d_y, Tensor x, Tensor depthwise, Tensor depthwise_bias, Tensor expand, "
      "Tensor expand_bias, Tensor reduce, Tensor reduce_bias, Tensor u, str activation) -> (Tensor d_x, "
      "Tensor d_depthwise, Tensor d_depthwise_bias, Tensor d_expand, Tensor d_expand_bias, Tensor d_reduce, "
      "Tensor d_reduce_bias)");
  m.def(
      "mlp_block(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor expand, Tensor expand_bias, "
      "Tensor reduce, Tensor reduce_bias, float eps) -> (Tensor y, Tensor u)");
  m.def(
      "mlp_block_bwd(Tensor d_y, Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor expand, "
      "Tensor expand_bias, Tensor reduce, Tensor reduce_bias, Tensor u, float eps) -> (Tensor d_x, "
      "Tensor d_norm_weight, Tensor d_norm_bias, Tensor d_expand, Tensor d_expand_bias, Tensor d_reduce, "
      "Tensor d_reduce_bias)");
  m.def("gated_mix(Tensor local, Tensor glob, Tensor weight, Tensor bias) -> (Tensor y, Tensor share)");
  m.def(
      "gated_mix_bwd(Tensor d_y, Tensor local, Tensor glob, Tensor weight, Tensor bias, Tensor share) "
      "-> (Tensor d_local, Tensor d_glob, Tensor d_weight, Tensor d_bias)");
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "The C++ and CUDA kernels of mmif_trt; its operations are torch.ops.mmif_trt.*";
}
