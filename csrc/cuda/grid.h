// Launchers of the product with a grid of blocks on CUDA; no torch inside. Each that returns int returns a cudaError_t,
// or surm::cuda::kTooLarge where the working set does not fit the device's shared memory. Semantics are those of
// cpu/grid.h. Workspace belongs to the call until the stream is past it.
#pragma once

#include <cstdint>

#include "shapes.h"

extern "C" {

// Bytes of workspace of a product, or of gradients, on the current device.
int64_t surm_cuda_grid_workspace_bytes(surm::StorageType type, const surm::GridShape* shape, bool gradient);

// Bytes of shared memory that a block of threads takes at the least.
int64_t surm_cuda_grid_shared_bytes(surm::StorageType type, const surm::GridShape* shape, bool gradient);

int surm_cuda_grid_matmul(surm::StorageType type, const surm::GridShape* shape, surm::ConstRows x, const void* v,
                          surm::ConstRows base, double scale, void* y, void* workspace, void* stream);

int surm_cuda_grid_backward(surm::StorageType type, const surm::GridShape* shape, surm::ConstRows g, surm::ConstRows x,
                            const void* v, double scale, void* x_gradient, void* v_gradient, void* workspace,
                            void* stream);

// Values of the arithmetic type in the spectra of a grid.
int64_t surm_cuda_grid_spectrum_size(surm::StorageType type, const surm::GridShape* shape);

int surm_cuda_grid_spectrum(surm::StorageType type, const surm::GridShape* shape, const void* v, void* spectrum,
                            void* stream);

int surm_cuda_grid_matmul_by_spectrum(surm::StorageType type, const surm::GridShape* shape, surm::ConstRows x,
                                      const void* spectrum, surm::ConstRows base, double scale, void* y, void* stream);
}
