// Launchers of the low displacement rank product on CUDA; no torch inside. Each that returns int returns a cudaError_t,
// or surm::cuda::kTooLarge where the working set does not fit the device's shared memory. Semantics are those of
// cpu/ldr.h. Workspace belongs to the call until the stream is past it.
#pragma once

#include <cstdint>

#include "shapes.h"

extern "C" {

// Bytes of workspace of a product, or of gradients, on the current device.
int64_t surm_cuda_ldr_workspace_bytes(surm::StorageType type, const surm::LdrShape* shape, bool gradient);

// Bytes of shared memory that a block of threads takes at the least.
int64_t surm_cuda_ldr_shared_bytes(surm::StorageType type, const surm::LdrShape* shape, bool gradient);

int surm_cuda_ldr_matmul(surm::StorageType type, const surm::LdrShape* shape, surm::ConstRows x, const void* left,
                         const void* right, surm::ConstRows base, double scale, void* y, void* workspace, void* stream);

// The gradients that are not null; left may be null where only left_gradient is wanted, right where only right_gradient
// is.
int surm_cuda_ldr_backward(surm::StorageType type, const surm::LdrShape* shape, surm::ConstRows g, surm::ConstRows x,
                           const void* left, const void* right, double scale, void* x_gradient, void* left_gradient,
                           void* right_gradient, void* workspace, void* stream);
}
