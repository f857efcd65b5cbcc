// Checks that speak: the op, the argument, what was received, what is expected.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <string>

namespace mmif {

// What was received or is expected, as text. No streams: where the compiler links its own C++ library into
// the extension (the first GPU machine did), a stream of one library crashes on the other library's locale.
inline std::string text(std::string words) { return words; }

inline std::string text(const char* words) { return words; }

inline std::string text(int64_t number) { return std::to_string(number); }

inline std::string text(double number) {
  char digits[32];
  return {digits, static_cast<size_t>(std::snprintf(digits, sizeof digits, "%g", number))};
}

inline std::string text(at::ScalarType type) { return c10::toString(type); }

inline std::string text(at::Device device) { return device.str(); }

inline std::string text(at::IntArrayRef shape) {
  std::string out = "[";
  for (const int64_t side : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(side);
  return out + "]";
}

}  // namespace mmif

// MMIF_CHECK("window_attention", "shift", shift, "0 <= shift < window", shift >= 0 && shift < window)
#define MMIF_CHECK(OP, ARGUMENT, RECEIVED, EXPECTED, CONDITION)                          \
  TORCH_CHECK(CONDITION, std::string("mmif_trt::") + (OP) + ": " + (ARGUMENT) + " is " + \
                             ::mmif::text(RECEIVED) + "; expected: " + ::mmif::text(EXPECTED))
