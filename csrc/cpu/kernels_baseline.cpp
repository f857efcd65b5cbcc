// The CPU kernels for any CPU that the compiler targets by default.
#define MMIF_ISA baseline
#define MMIF_VECTOR_BYTES 16
#include "fusion_loss_bwd_kernel.h"
#include "fusion_loss_fwd_kernel.h"
#include "gated_mix_kernel.h"
#include "local_block_kernel.h"
#include "mlp_block_kernel.h"
#include "window_attention_kernel.h"
