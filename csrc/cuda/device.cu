// The current device and CUDA's errors.
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

}  // namespace surm::cuda

extern "C" const char* surm_cuda_error_string(int error) {
  if (error == surm::cuda::kTooLarge) return "the working set does not fit the shared memory of this device";
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" int surm_cuda_set_device(int device) { return cudaSetDevice(device); }
