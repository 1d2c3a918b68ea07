// The current device, kernels on it, and CUDA's errors.
#include <mutex>
#include <set>
#include <utility>

#include "device.cuh"
#include "device.h"

namespace surm::cuda {

int64_t shared_memory_limit() {
  constexpr int kMostDevices = 64;
  static int limits[kMostDevices];  // 0: not asked yet; threads that ask at once write the same value
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return 0;
  if (limits[device] == 0) {
    int limit = 0;
    if (cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
    limits[device] = limit;
  }
  return limits[device];
}

cudaError_t prepare(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> prepared;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (prepared.count({kernel, device}) != 0) return cudaSuccess;
  error = beside_capture([kernel] {
    cudaFuncAttributes attributes{};  // asking for them loads the kernel
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    const int64_t granted = shared_memory_limit() - static_cast<int64_t>(attributes.sharedSizeBytes);
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(granted));
  });
  if (error == cudaSuccess) prepared.insert({kernel, device});
  return error;
}

}  // namespace surm::cuda

extern "C" const char* surm_cuda_error_string(int error) {
  if (error == surm::cuda::kTooLarge) return "the working set does not fit the shared memory of this device";
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int surm_cuda_set_device(int device) { return cudaSetDevice(device); }
