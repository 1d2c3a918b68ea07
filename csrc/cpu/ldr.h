// The CPU kernels of low displacement rank products as the torch glue sees them.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct LdrKernels {
  // y = base + scale · x Wᵀ; base.data may be null; left, right (groups, r, n) and y contiguous.
  void (*matmul)(StorageType type, const LdrShape& shape, ConstRows x, const void* left, const void* right,
                 ConstRows base, double scale, void* y, const ParallelFor& parallel);
  // The gradients of scale · ⟨g, x Wᵀ⟩, those that are not null; left may be null where only left_gradient is wanted,
  // right where only right_gradient is. All contiguous.
  void (*backward)(StorageType type, const LdrShape& shape, ConstRows g, ConstRows x, const void* left,
                   const void* right, double scale, void* x_gradient, void* left_gradient, void* right_gradient,
                   const ParallelFor& parallel);
};

}  // namespace surm::cpu
