// Launchers of stochastic rounding on CUDA; no torch inside. Each returns a cudaError_t. Semantics are those of
// cpu/stochastic.h.
#pragma once

#include "shapes.h"

extern "C" {

int surm_cuda_stochastic_sum(int64_t rows, int64_t columns, const surm::Merge* merge, const void* addend,
                             int64_t addend_stride, bool wide, void* stream);

// The key goes to memory of the device.
int surm_cuda_rounding_key(const surm::Numbers* numbers, int count, uint64_t seed, uint64_t* key, void* stream);
}
