// The CPU kernels for any CPU the compiler's default allows.
#define MMIF_ISA baseline
#define MMIF_VECTOR_BYTES 16
#include "window_attention_kernel.h"
