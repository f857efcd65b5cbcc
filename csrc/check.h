// Checks that speak: the op, the argument, what was received, what is expected.
#pragma once
#include <c10/util/Exception.h>

// MMIF_CHECK("window_attention", "shift", shift, "0 <= shift < window", shift >= 0 && shift < window)
#define MMIF_CHECK(OP, ARGUMENT, RECEIVED, EXPECTED, CONDITION) \
  TORCH_CHECK(CONDITION, "mmif_trt::", OP, ": ", ARGUMENT, " is ", RECEIVED, "; expected: ", EXPECTED)
