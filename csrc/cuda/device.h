// What the glue needs of the CUDA runtime; no torch inside.
#pragma once

#include <cstdint>

extern "C" {

// What a launcher's return value says, 0 aside.
const char* surm_cuda_error_string(int error);

// Shared memory in bytes that a block may have on the current device; 0 where there is none.
int64_t surm_cuda_shared_memory_limit();
}
