// Checks that speak: the op, the argument, what came, what is accepted.
#pragma once
#include <c10/util/Exception.h>

// MMIF_CHECK("window_attention", "shift", shift, "0 <= shift < window", shift >= 0 && shift < window)
#define MMIF_CHECK(OP, ARGUMENT, CAME, ACCEPTED, CONDITION) \
  TORCH_CHECK(CONDITION, "mmif_trt::", OP, ": ", ARGUMENT, " is ", CAME, "; accepted: ", ACCEPTED)
