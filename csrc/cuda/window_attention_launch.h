// The launchers that window_attention.cpp calls. Needs cudaError_t and cudaStream_t: from cuda_runtime_api.h,
// or the emulator's.
#pragma once
#include "../window_attention.h"

namespace mmif {

inline int64_t window_count(const WindowAttentionParams& p) {
  return p.batch * ((p.height + p.window - 1) / p.window) * ((p.width + p.window - 1) / p.window);
}

// The caller chooses p.chunks for each of the two: 1 to window_count(p), at most 65535. All rows of D
// elements begin at multiples of 16 bytes.
cudaError_t window_attention_fwd_launch(const WindowAttentionParams& p, cudaStream_t stream);
cudaError_t window_attention_bwd_launch(const WindowAttentionParams& p, cudaStream_t stream);
// d_bias_table [cells, heads] = the sum of p.d_bias_partial over chunks, always in the same order.
cudaError_t window_attention_d_bias_launch(const WindowAttentionParams& p, float* d_bias_table,
                                           cudaStream_t stream);

// Whether this binary contains code for the current device.
bool window_attention_loads();

}  // namespace mmif
