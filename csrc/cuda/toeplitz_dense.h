// Launchers of the dense block Toeplitz or Hankel matrix on CUDA; no torch inside. Each returns a cudaError_t.
#pragma once

#include "shapes.h"

extern "C" {

// w (groups, M·m, K·n) = W(t); both contiguous. `transposed`, `tokens`, `wide` of the shape are ignored.
int surm_cuda_toeplitz_dense(surm::StorageType type, const surm::ToeplitzShape* shape, const void* t, void* w,
                             void* stream);

// t (groups, M, K, m + n - 1): the sums of w along the diagonals (antidiagonals if reflected) of every block.
int surm_cuda_toeplitz_dense_adjoint(surm::StorageType type, const surm::ToeplitzShape* shape, const void* w, void* t,
                                     void* stream);

// merge->out = merge->weight + scale · W(t) for one group, rounded once; `type` is that of t, which is contiguous.
int surm_cuda_toeplitz_merge(surm::StorageType type, const surm::ToeplitzShape* shape, const void* t, double scale,
                             const surm::Merge* merge, void* stream);
}
