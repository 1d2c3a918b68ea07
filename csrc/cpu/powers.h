// The CPU kernel that generates Vandermonde matrices as the torch glue sees it.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct PowersKernels {
  // w (count, columns) = v[i]^j for float32 and float64, each rounded once; subnormal powers are zero, since a matrix
  // product can take forty times as long over them.
  void (*powers)(StorageType type, const void* v, int64_t count, int64_t columns, void* w, const ParallelFor& parallel);
};

}  // namespace surm::cpu
