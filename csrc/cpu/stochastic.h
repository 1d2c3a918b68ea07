// The CPU kernels of stochastic rounding as the torch glue sees them.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct StochasticKernels {
  // merge.out = merge.weight + addend, rows × columns in float32, rounded stochastically by merge.key.
  void (*sum)(int64_t rows, int64_t columns, const Merge& merge, const float* addend, int64_t addend_stride,
              const ParallelFor& parallel);
};

}  // namespace surm::cpu
