// The operators of stochastic rounding on the CPU.
#include "cpu_kernels.h"
#include "stochastic_operators.h"

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) { surm::glue::implement_stochastic<surm::glue::CpuKernels>(m); }
