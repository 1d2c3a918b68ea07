// The grid operators on the CPU.
#include "cpu_kernels.h"
#include "grid_operators.h"

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) { surm::glue::implement_grid<surm::glue::CpuKernels>(m); }
