// Launchers of the dense block f-circulant matrix on CUDA; no torch inside. Each returns a cudaError_t.
#pragma once

#include <cstdint>

extern "C" {

// w (row_blocks · block, in_blocks · block) = W(v), v (row_blocks, in_blocks, block), both contiguous.
// `element_size` is 2, 4 or 8 bytes of a floating point type; row_blocks counts groups times output blocks.
int surm_cuda_krylov_dense(const void* v, void* w, int64_t row_blocks, int64_t in_blocks, int64_t block, int sign,
                           int element_size, void* stream);

const char* surm_cuda_error_string(int error);
}
