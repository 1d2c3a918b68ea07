// Launchers of the dense matrix of a grid of blocks on CUDA; no torch inside. Each returns a cudaError_t. Semantics are
// those of cpu/grid.h.
#pragma once

#include "shapes.h"

extern "C" {

int surm_cuda_grid_dense(surm::StorageType type, const surm::GridShape* shape, const void* v, void* w, void* stream);

int surm_cuda_grid_dense_adjoint(surm::StorageType type, const surm::GridShape* shape, const void* w, void* v,
                                 void* stream);

int surm_cuda_grid_merge(surm::StorageType type, const surm::GridShape* shape, const void* v, double scale,
                         const surm::Merge* merge, void* stream);
}
