// The ldr operators on the CPU.
#include "cpu_kernels.h"
#include "ldr_operators.h"

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) { surm::glue::implement_ldr<surm::glue::CpuKernels>(m); }
