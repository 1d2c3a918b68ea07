// CUDA for a CPU: what csrc/cuda/device.cuh takes when nvcc does not compile it. Kernels run with their threads and
// blocks in random order, one block at a time, and a barrier too few, an access out of bounds or a barrier that not all
// threads reach is an error. Only dynamic shared memory exists: __shared__ is not defined here.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "launch.h"
#include "misalignment.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  surm::emulator::block.wait_at_barrier({file, line});
}

namespace surm::emulator {

// Kernels have whole warps take part in what a warp does together.
inline void check_mask(const char* meeting, Site site, uint32_t mask) {
  if (mask == ~uint32_t{0}) return;
  fail(std::string(meeting) + " with mask " + std::to_string(mask) + " at " + site.text() + ", want all lanes");
}

}  // namespace surm::emulator

inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return surm::emulator::block.wait_at_barrier({file, line}, predicate != 0) ? 1 : 0;
}

inline void __syncwarp(uint32_t mask = ~uint32_t{0}, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  surm::emulator::check_mask("warp barrier", {file, line}, mask);
  surm::emulator::block.wait_at_warp_barrier({file, line});
}

namespace surm::emulator {

// A shuffle among groups of `width` lanes. It puts accesses to shared memory in no order.
template <class T>
T shuffle(Site site, uint32_t mask, T value, int source) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) <= sizeof(uint64_t), "a lane hands on one number");
  check_mask("shuffle", site, mask);
  Operands operands{};
  std::memcpy(operands.data(), &value, sizeof(T));
  std::memcpy(&value, block.meet(site, "shuffle", operands)[source].data(), sizeof(T));
  return value;
}

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

}  // namespace surm::emulator

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  const int lane = surm::emulator::lane(), source = lane ^ lanes;
  // A lane of a later group is out of reach.
  return surm::emulator::shuffle({file, line}, mask, value, source / width > lane / width ? lane : source);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, int lanes, int width = 32, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const int lane = surm::emulator::lane(), source = lane + lanes;
  return surm::emulator::shuffle({file, line}, mask, value, source / width != lane / width ? lane : source);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  const int first = surm::emulator::lane() / width * width;
  return surm::emulator::shuffle({file, line}, mask, value, first + source % width);
}

namespace surm::cuda {

template <class T>
using Shared = emulator::SharedPointer<T>;

template <class T>
Shared<T> shared_memory(int64_t offset = 0) {
  return Shared<T>(offset);
}

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits in another type");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace surm::cuda

inline float __uint_as_float(uint32_t bits) { return surm::cuda::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return surm::cuda::bit_cast<uint32_t>(value); }

namespace surm::cuda {

inline float bfloat16_to_float(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_bfloat16(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  // Scaling by 2^112 moves the exponent's bias and normalises subnormal numbers, exactly.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float value) {
  const uint32_t sign = bit_cast<uint32_t>(value) >> 16 & 0x8000, bits = bit_cast<uint32_t>(value) & 0x7fffffff;
  const auto with_sign = [&](uint32_t magnitude) { return static_cast<uint16_t>(sign | magnitude); };
  if (value != value) return 0x7fff;
  if (bits >= 0x477ff000) return with_sign(0x7c00);  // 65520 and above
  // Below the normal numbers the addition rounds: the last bit of 0.5f is worth 2^-24.
  if (bits < 0x38800000) return with_sign(bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - 0x3f000000);
  return with_sign((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

}  // namespace surm::cuda
