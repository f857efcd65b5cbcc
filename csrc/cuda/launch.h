// Wraps every launch: raises the error that the launcher returns, as text. The launcher is given the current
// stream of the device that a CUDAGuard has chosen.
#pragma once
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define MMIF_LAUNCH(OP, LAUNCH)                                                                 \
  do {                                                                                          \
    const cudaError_t error = (LAUNCH);                                                         \
    TORCH_CHECK(error == cudaSuccess, "mmif_trt::", OP, ": CUDA: ", cudaGetErrorString(error)); \
  } while (false)
