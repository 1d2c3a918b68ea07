// The plan of a transform as kernels take it: stages by value, tables in the device's memory.
#pragma once

#include "butterflies.h"
#include "device.cuh"

namespace surm::cuda {

// The last radix of every plan, taken in the registers of one thread.
constexpr int kTile = 16;

// Division of 0 … 2^31 - 1 by a number that is known before the kernel starts (Granlund and Montgomery 1994).
struct Divisor {
  uint32_t divisor = 1, multiplier = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t value) : divisor(static_cast<uint32_t>(value)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  __host__ __device__ int quotient(int number) const {
    const uint32_t n = static_cast<uint32_t>(number);
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
    return static_cast<int>((high + n) >> shift);
  }
};

struct DeviceStage {
  int radix = 1;
  int stride = 1;  // q: the distance between the elements a butterfly combines
  Divisor by_stride;
  int twiddles = 0;  // where the stage's table starts: factors w^(jk) and w^(j(k + 1)) at (k - 1) / 2 · q + j, k odd
};

// Two neighbouring factors, loaded at once; the second one of the last pair of an even radix is not used.
template <class Scalar>
struct alignas(16) TwiddlePair {
  Complex<Scalar> first, second;
};

template <class Scalar>
struct DevicePlan {
  static constexpr int kMostStages = 8;
  int size = 0;    // n
  int length = 0;  // N, a multiple of kTile
  int stage_count = 0;
  DeviceStage stages[kMostStages];
  const TwiddlePair<Scalar>* twiddles = nullptr;
  const Complex<Scalar>* twist = nullptr;        // exp(iπ j/n) for j < n, where N = n
  const Complex<Scalar>* tensor_tables[2] = {};  // of transforms on the matrix unit, plain and twisted, if there are

  bool embedded() const { return length != size; }
};

// The plan of rows of n values on the current device, or of rows padded with zeros to n or more; its tables are
// uploaded once and stay. Upload waits for a stream of its own alone, so it may happen while another is captured.
// Null, with *error set, where that fails.
template <class Scalar>
const DevicePlan<Scalar>* device_plan(int64_t size, bool padded, int* error);

// N of that plan.
int64_t plan_length(int64_t size, bool padded);

}  // namespace surm::cuda
