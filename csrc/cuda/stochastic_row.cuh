// How the sums of a row of a matrix are rounded: to nearest or, by the place of each, stochastically, to the bit as on
// the CPU (cpu/stochastic_rows.h).
#pragma once

#include <cstring>

#include "stochastic_rounding.h"
#include "storage.cuh"

namespace surm::cuda {

struct NearestRow {
  __device__ NearestRow(const uint64_t*, int64_t) {}

  template <class Out>
  __device__ Out rounded(ComputeType<Out> value, int64_t) const {
    return cuda::rounded<Out>(value);
  }
};

class StochasticRow {
 public:
  __device__ StochasticRow(const uint64_t* key, int64_t row) : key_(row_key(*key, static_cast<uint64_t>(row))) {}

  template <class Out>
  __device__ Out rounded(float value, int64_t column) const {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint32_t random = random_word(key_, static_cast<uint32_t>(column));
    const uint32_t found =
        std::is_same<Out, BFloat16>::value ? bfloat16_bits(bits, random) : float16_bits(bits, random);
    return {static_cast<uint16_t>(found)};
  }

 private:
  uint64_t key_;
};

}  // namespace surm::cuda
