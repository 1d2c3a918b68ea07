// The part of the CUDA runtime that the launchers use, on devices that differ in the shared memory of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorStreamCaptureUnsupported = 900,
};

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2,
};

namespace surm::emulator {

struct Device {
  int major, minor, multiprocessors;
  int shared_bytes_of_block, shared_bytes_of_multiprocessor;
};

constexpr Device kDevices[] = {
    {9, 0, 132, 227 << 10, 228 << 10},
    {8, 0, 108, 163 << 10, 164 << 10},
    {7, 5, 40, 64 << 10, 64 << 10},
};
constexpr int kDeviceCount = sizeof(kDevices) / sizeof(kDevices[0]);

inline int current_device = 0;
inline const Device& device() { return kDevices[current_device]; }

// A stream is being captured into a graph; then what waits or allocates is refused unless the mode is relaxed.
inline bool capturing = false;
inline cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
inline bool refused() { return capturing && capture_mode != cudaStreamCaptureModeRelaxed; }

inline int64_t allocations = 0;

// What the next allocation and the next launch are to say, and what failed last, which cudaGetLastError forgets.
inline cudaError_t next_allocation = cudaSuccess, next_launch = cudaSuccess, last_error = cudaSuccess;

inline cudaError_t told(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Bytes of shared memory that a kernel may have on a device, once it is loaded there; and all that were ever granted.
inline std::map<std::pair<const void*, int>, int64_t> shared_bytes_of_kernels;

struct Grant {
  const void* kernel;
  int device;
  int64_t bytes;
};

inline std::vector<Grant> grants;

}  // namespace surm::emulator

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaGetLastError() { return std::exchange(surm::emulator::last_error, cudaSuccess); }

inline cudaError_t cudaGetDevice(int* device) {
  *device = surm::emulator::current_device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= surm::emulator::kDeviceCount) return cudaErrorInvalidDevice;
  surm::emulator::current_device = device;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  if (number < 0 || number >= surm::emulator::kDeviceCount) return cudaErrorInvalidDevice;
  const surm::emulator::Device& device = surm::emulator::kDevices[number];
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_bytes_of_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_bytes_of_block;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

// Memory of the device is poisoned.
template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  using namespace surm::emulator;
  if (refused()) return told(cudaErrorStreamCaptureUnsupported);
  if (next_allocation != cudaSuccess) return told(std::exchange(next_allocation, cudaSuccess));
  *memory = static_cast<T*>(std::malloc(bytes));
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(static_cast<void*>(*memory), 0xff, bytes);
  ++surm::emulator::allocations;
  return cudaSuccess;
}

inline cudaError_t cudaFree(void* memory) {
  if (surm::emulator::refused()) return cudaErrorStreamCaptureUnsupported;
  std::free(memory);
  return cudaSuccess;
}

// A stream of one's own copies when it is waited for, so that a copy that nobody waits for is noticed.
struct CUstream_st {
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies;
};

using cudaStream_t = CUstream_st*;

constexpr unsigned cudaStreamNonBlocking = 1;

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (surm::emulator::refused()) return cudaErrorStreamCaptureUnsupported;
  if (stream == nullptr) return cudaSuccess;
  for (const CUstream_st::Copy& copy : stream->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  stream->copies.clear();
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (stream == nullptr) {
    std::memcpy(to, from, bytes);
  } else {
    stream->copies.push_back({to, from, bytes});
  }
  return cudaSuccess;
}

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const cudaStreamCaptureMode before = surm::emulator::capture_mode;
  surm::emulator::capture_mode = *mode;
  *mode = before;
  return cudaSuccess;
}

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace surm::emulator {

// Loads a kernel on the current device, with what every kernel may have.
inline cudaError_t load(const void* kernel) {
  constexpr int64_t kGranted = 48 << 10;
  const std::pair<const void*, int> place{kernel, current_device};
  if (shared_bytes_of_kernels.count(place) != 0) return cudaSuccess;
  if (refused()) return told(cudaErrorStreamCaptureUnsupported);
  shared_bytes_of_kernels[place] = kGranted;
  return cudaSuccess;
}

}  // namespace surm::emulator

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  return surm::emulator::load(kernel);
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  using namespace surm::emulator;
  if (const cudaError_t error = load(kernel); error != cudaSuccess) return error;
  if (bytes < 0 || bytes > device().shared_bytes_of_block) return told(cudaErrorInvalidValue);
  shared_bytes_of_kernels[{kernel, current_device}] = bytes;
  grants.push_back({kernel, current_device, bytes});
  return cudaSuccess;
}
