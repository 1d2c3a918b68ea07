// The order of spectra on the matrix unit: of every row of the outer stage, the core's values as its tables have them.
#pragma once

#include "tensor_layout.h"
#include "transform.cuh"

namespace surm::cuda {

// Where a frequency is in the spectrum that parameter_spectra() makes.
__device__ __forceinline__ int place_of_frequency(const DevicePlan<float>& plan, int frequency) {
  int place = 0;
  for (int s = 0; s < plan.stage_count; ++s) {
    const int radix = plan.stages[s].radix, digit = frequency % radix;
    frequency /= radix;
    place += digit * plan.stages[s].stride;
  }
  place += frequency;
  return place / kTile + place % kTile * tiles_of(plan.length);
}

// From a place in a spectrum on the matrix unit to that of the same frequency there.
struct TensorOrder {
  DevicePlan<float> plan;
  int radix;

  explicit TensorOrder(const DevicePlan<float>& of) : plan(of), radix(of.length / kCore) {}

  __device__ __forceinline__ int64_t operator()(int64_t at) const {
    const int place = static_cast<int>(at), row = place / kCore;
    return place_of_frequency(plan, row + radix * core_value_at(place % kCore));
  }
};

}  // namespace surm::cuda
