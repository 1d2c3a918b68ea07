// The CPU kernels of the Kronecker product as the torch glue sees them.
#pragma once

#include "interface.h"

namespace surm::cpu {

// W = A ⊗ B of p·r × q·s, A of p × q, B of r × s: a token x is a q × s matrix X, row by row, and W x is A X Bᵀ.
struct KroneckerShape {
  int64_t groups;      // independent problems
  int64_t tokens;      // rows of x in each
  int64_t p, q, r, s;  // A is p × q, B is r × s
  bool transposed;     // the product is with Wᵀ: rows of p·r go in, rows of q·s come out
};

struct KroneckerKernels {
  // y = base + scale · x Wᵀ; base.data may be null; a (groups, p, q), b (groups, r, s) and y contiguous.
  void (*matmul)(StorageType type, const KroneckerShape& shape, ConstRows x, const void* a, const void* b,
                 ConstRows base, double scale, void* y, const ParallelFor& parallel);
  // The gradients of scale · ⟨g, x Wᵀ⟩, those that are not null; a may be null where only a_gradient is wanted, b where
  // only b_gradient is. All contiguous.
  void (*backward)(StorageType type, const KroneckerShape& shape, ConstRows g, ConstRows x, const void* a,
                   const void* b, double scale, void* x_gradient, void* a_gradient, void* b_gradient,
                   const ParallelFor& parallel);
};

}  // namespace surm::cpu
