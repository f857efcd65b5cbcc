// The CPU kernels for AVX2, whatever the build machine supports; empty on other CPUs than x86-64.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define MMIF_ISA avx2
#define MMIF_VECTOR_BYTES 32
#include "fusion_loss_bwd_kernel.h"
#include "fusion_loss_fwd_kernel.h"
#include "gated_mix_kernel.h"
#include "local_block_kernel.h"
#include "mlp_block_kernel.h"
#include "window_attention_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
