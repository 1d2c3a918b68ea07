// The CPU kernels of stochastic rounding as the torch glue sees them.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct StochasticKernels {
  // merge.out = merge.weight + addend, rows × columns, rounded stochastically by merge.key. The addend is float32 or of
  // the type of out, `wide` says which.
  void (*sum)(int64_t rows, int64_t columns, const Merge& merge, const void* addend, int64_t addend_stride, bool wide,
              const ParallelFor& parallel);

  // The key that follows from a seed and so many tensors.
  uint64_t (*key)(const Numbers* numbers, int count, uint64_t seed);
};

}  // namespace surm::cpu
