// The schemas of torch.ops.mmif_trt. Importing mmif_trt._C registers them; the implementations register
// themselves, one a device, in cpu/ and cuda/. Fake and autograd parts are Python (mmif_trt/ops).
#include <pybind11/pybind11.h>
#include <torch/library.h>

TORCH_LIBRARY(mmif_trt, m) {
  m.def("window_attention(Tensor qkv, Tensor bias_table, int window, int shift) -> (Tensor out, Tensor lse)");
  m.def(
      "window_attention_bwd(Tensor d_out, Tensor qkv, Tensor bias_table, Tensor out, Tensor lse, int window, "
      "int shift) -> (Tensor d_qkv, Tensor d_bias_table)");
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "The C++ and CUDA kernels of mmif_trt; its operations are torch.ops.mmif_trt.*";
}
