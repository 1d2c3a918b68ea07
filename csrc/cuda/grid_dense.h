// Launchers of the dense block f-circulant matrix on CUDA; no torch inside. Each returns a cudaError_t.
#pragma once

#include "shapes.h"

extern "C" {

// w (groups, M·b, K·b) = W(v); both contiguous. `transposed`, `tokens` of the shape are ignored.
int surm_cuda_krylov_dense(surm::StorageType type, const surm::KrylovShape* shape, const void* v, void* w,
                           void* stream);

// v (groups, M, K, b): the sums of w along the f-circulant diagonals of every block; both contiguous.
int surm_cuda_krylov_dense_adjoint(surm::StorageType type, const surm::KrylovShape* shape, const void* w, void* v,
                                   void* stream);

// merge->out = merge->weight + scale · W(v) for one group, rounded once; `type` is that of v, which is contiguous.
int surm_cuda_krylov_merge(surm::StorageType type, const surm::KrylovShape* shape, const void* v, double scale,
                           const surm::Merge* merge, void* stream);
}
