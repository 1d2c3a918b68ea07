// The CPU kernels of low displacement rank products as the torch glue sees them.
#pragma once

#include "interface.h"

namespace surm::cpu {

// The top left out_size × in_size part of the n × n matrix W = Σ_l Z_1(left_l) Z_-1(right_l), times J if reflected.
struct LdrShape {
  int64_t groups;    // independent problems
  int64_t tokens;    // rows of x in each
  int64_t rank;      // r
  int64_t size;      // n
  int64_t out_size;  // values of y in W x, of g
  int64_t in_size;   // values of x
  bool transposed;   // the product is with Wᵀ: rows of out_size go in, rows of in_size come out
  bool reflected;
};

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
