// The launchers of the fusion loss's CUDA kernels, for the host part, which needs no CUDA compiler. All
// arrays are on the stream's device; the launchers return the launch's error.
#pragma once
#ifdef MMIF_EMULATOR
#include "cuda_emu.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "../fusion_loss.h"

namespace mmif {

constexpr int kTileWidth = 32, kTileHeight = 32;  // px

// FusionLossParams::chunks on CUDA: the tiles of one image.
inline int64_t fusion_loss_chunks(int64_t height, int64_t width) {
  return ((height + kTileHeight - 1) / kTileHeight) * ((width + kTileWidth - 1) / kTileWidth);
}

// Writes choices, moments and terms; needs partial.
cudaError_t fusion_loss_fwd_launch(const FusionLossParams& p, cudaStream_t stream);
// Writes d_f.
cudaError_t fusion_loss_bwd_launch(const FusionLossParams& p, cudaStream_t stream);

}  // namespace mmif
