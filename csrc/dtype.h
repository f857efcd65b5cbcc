// The element types the kernels know, without torch.
#pragma once

namespace mmif {

enum class DType { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace mmif
