// The CPU kernels of the Toeplitz and Hankel product as the torch glue sees them.
#pragma once

#include "interface.h"

namespace surm::cpu {

struct ToeplitzKernels {
  // y = base + scale · x W(t)ᵀ; base.data may be null; t (groups, M, K, m + n - 1) and y contiguous.
  void (*matmul)(StorageType type, const ToeplitzShape& shape, ConstRows x, const void* t, ConstRows base, double scale,
                 void* y, const ParallelFor& parallel);
  // The gradients of scale · ⟨g, x W(t)ᵀ⟩: x_gradient (may be null, then t may be too) and t_gradient, contiguous.
  void (*backward)(StorageType type, const ToeplitzShape& shape, ConstRows g, ConstRows x, const void* t, double scale,
                   void* x_gradient, void* t_gradient, const ParallelFor& parallel);
  // The spectra of W(t), or of W(t)ᵀ, for products to come in this process: `spectrum_size` values of the type that
  // `type`, that of t, is computed in; they serve any number of tokens of any type computed in the same.
  int64_t (*spectrum_size)(StorageType type, const ToeplitzShape& shape);
  void (*spectrum)(StorageType type, const ToeplitzShape& shape, const void* t, void* spectrum,
                   const ParallelFor& parallel);
  // matmul by spectra of the same groups, blocks and sizes; the shape is not `transposed`, they may be. False, and
  // nothing done, where their number of values is another than `size`.
  bool (*matmul_by_spectrum)(StorageType type, const ToeplitzShape& shape, ConstRows x, const void* spectrum,
                             int64_t size, ConstRows base, double scale, void* y, const ParallelFor& parallel);
};

struct ToeplitzDenseKernels {
  // w (groups, M·m, K·n) = W(t); both contiguous. `transposed`, `tokens` of the shape are ignored.
  void (*dense)(StorageType type, const ToeplitzShape& shape, const void* t, void* w, const ParallelFor& parallel);
  // t (groups, M, K, m + n - 1): the sums of w along the diagonals (antidiagonals if reflected) of every block.
  void (*adjoint)(StorageType type, const ToeplitzShape& shape, const void* w, void* t, const ParallelFor& parallel);
  // merge.out = merge.weight + scale · W(t) for one group, rounded once; `type` is that of t, which is contiguous.
  void (*merge)(StorageType type, const ToeplitzShape& shape, const void* t, double scale, const Merge& merge,
                const ParallelFor& parallel);
};

}  // namespace surm::cpu
