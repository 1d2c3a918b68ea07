// What the glue needs of the CUDA runtime; no torch inside.
#pragma once

#include <cstdint>

extern "C" {

// What a launcher's return value says, 0 aside.
const char* surm_cuda_error_string(int error);

// Makes a device the current one of this library's own CUDA runtime. A cudaError_t.
int surm_cuda_set_device(int device);
}
