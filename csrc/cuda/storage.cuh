// The types that tensors are kept in, and how kernels read and round them.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace surm::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What each storage type is computed in.
template <class Storage>
using ComputeType = std::conditional_t<std::is_same<Storage, double>::value, double, float>;

__device__ inline double widened(double value) { return value; }
__device__ inline float widened(float value) { return value; }
__device__ inline float widened(BFloat16 value) { return bfloat16_to_float(value.bits); }
__device__ inline float widened(Float16 value) { return half_to_float(value.bits); }

// The nearest value of a storage type.
template <class Storage>
__device__ inline Storage rounded(ComputeType<Storage> value) {
  if constexpr (std::is_same<Storage, BFloat16>::value) {
    return {float_to_bfloat16(value)};
  } else if constexpr (std::is_same<Storage, Float16>::value) {
    return {float_to_half(value)};
  } else {
    return value;
  }
}

// a · b rounded before anything is added to it; the compiler would make one operation of both.
template <class Scalar>
__device__ inline Scalar product(Scalar a, Scalar b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Scalar) == 8) return __dmul_rn(a, b);
  if constexpr (sizeof(Scalar) == 4) return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// 16 bytes that nobody reads again: past L1, which holds the tables of transforms.
__device__ __forceinline__ uint4 load_packet_once(const uint4* from) {
#if defined(__CUDA_ARCH__)
  return __ldcg(from);
#else
  return *from;
#endif
}

// 16 bytes in one store: the compiler takes a plain one apart where it saw its parts being made.
__device__ __forceinline__ void store_packet(uint4* to, const uint4& packet) {
#if defined(__CUDA_ARCH__)
  __stwb(to, packet);
#else
  *to = packet;
#endif
}

// Calls body with a value of the storage type; what it returns is a launcher's result.
template <class Body>
int with_storage(StorageType type, const Body& body) {
  switch (type) {
    case StorageType::kFloat64:
      return body(double{});
    case StorageType::kFloat32:
      return body(float{});
    case StorageType::kBFloat16:
      return body(BFloat16{});
    case StorageType::kFloat16:
      return body(Float16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace surm::cuda
