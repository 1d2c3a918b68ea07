// What the kernels need of CUDA beyond its own names. The tests compile the same kernel sources for the CPU, against an
// emulator that checks every access to shared memory; there tests/emulator/emulator.h takes the place of what is below.
#pragma once

#include <cstdint>

#include "shapes.h"

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace surm::cuda {

template <class T>
using Shared = T*;

// The dynamic shared memory of the block from byte `offset` on, a multiple of 16.
template <class T>
__device__ __forceinline__ Shared<T> shared_memory(int64_t offset = 0) {
  extern __shared__ __align__(16) unsigned char surm_shared_memory[];
  return reinterpret_cast<T*>(surm_shared_memory + offset);
}

__device__ __forceinline__ float bfloat16_to_float(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__host__ __device__ __forceinline__ uint16_t float_to_bfloat16(float value) {
  return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(value)).x;
}
__device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__host__ __device__ __forceinline__ uint16_t float_to_half(float value) {
  return static_cast<__half_raw>(__float2half_rn(value)).x;
}

using Grid = dim3;

// Starts a kernel that is prepared. The code is that of this launch, where cudaGetLastError may find an older failure.
template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), Grid grid, int threads, int64_t shared_bytes, void* stream,
                  Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace surm::cuda

#else
#include "emulator.h"
#endif

namespace surm::cuda {

// What launchers return besides cudaError_t: the working set is larger than a block's shared memory.
constexpr int kTooLarge = -1;

constexpr int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Shared memory that a block may have on the current device, in bytes; 0 where there is none.
int64_t shared_memory_limit();

// Calls body, which does what a thread that captures a graph may not do unless it says that it means another stream.
template <class Body>
cudaError_t beside_capture(const Body& body) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return error;
  error = body();
  cudaThreadExchangeStreamCaptureMode(&mode);
  return error;
}

// Loads a kernel on the current device and grants it the most shared memory that a block may have there, both once.
cudaError_t prepare(const void* kernel);

// Starts a kernel. A cudaError_t; what fails is told here and not found again by a later call.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), Grid grid, int threads, int64_t shared_bytes, void* stream,
           Arguments... arguments) {
  cudaError_t error = prepare(reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) error = start(kernel, grid, threads, shared_bytes, stream, arguments...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace surm::cuda
