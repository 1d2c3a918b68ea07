// The CPU kernels of the product with a grid of blocks as the torch glue sees them. v (groups, M, K, values of a block)
// and results are contiguous.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct GridKernels {
  // y = base + scale · x W(v)ᵀ; base.data may be null.
  void (*matmul)(StorageType type, const GridShape& shape, ConstRows x, const void* v, ConstRows base, double scale,
                 void* y, const ParallelFor& parallel);
  // The gradients of scale · ⟨g, x W(v)ᵀ⟩: x_gradient (may be null, then v may be too) and v_gradient.
  void (*backward)(StorageType type, const GridShape& shape, ConstRows g, ConstRows x, const void* v, double scale,
                   void* x_gradient, void* v_gradient, const ParallelFor& parallel);
  // The spectra of W(v), or of W(v)ᵀ, for products to come in this process: `spectrum_size` values of the type that
  // `type`, that of v, is computed in; they serve any number of tokens of any type computed in the same.
  int64_t (*spectrum_size)(StorageType type, const GridShape& shape);
  void (*spectrum)(StorageType type, const GridShape& shape, const void* v, void* spectrum,
                   const ParallelFor& parallel);
  // matmul by spectra of the same groups, blocks and sizes; the shape is not `transposed`, they may be. False, and
  // nothing done, where their number of values is another than `size`.
  bool (*matmul_by_spectrum)(StorageType type, const GridShape& shape, ConstRows x, const void* spectrum, int64_t size,
                             ConstRows base, double scale, void* y, const ParallelFor& parallel);
};

// `transposed`, `tokens` and `wide` of the shape are ignored.
struct GridDenseKernels {
  // w (groups, M·m, K·n) = W(v).
  void (*dense)(StorageType type, const GridShape& shape, const void* v, void* w, const ParallelFor& parallel);
  // v: the sums of w along the (anti)diagonals of every block, those that wrap around with their sign.
  void (*adjoint)(StorageType type, const GridShape& shape, const void* w, void* v, const ParallelFor& parallel);
  // merge.out = merge.weight + scale · W(v) for one group, rounded once, to nearest or by merge.key; `type` is that of
  // v.
  void (*merge)(StorageType type, const GridShape& shape, const void* v, double scale, const Merge& merge,
                const ParallelFor& parallel);
};

}  // namespace surm::cpu
