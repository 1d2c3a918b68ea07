// The toeplitz operators on the CPU.
#include "cpu_kernels.h"
#include "toeplitz_operators.h"

STABLE_TORCH_LIBRARY_IMPL(surm_kernels, CPU, m) { surm::glue::implement_toeplitz<surm::glue::CpuKernels>(m); }
