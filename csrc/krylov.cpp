// The krylov operators on the CPU.
#include "cpu_kernels.h"
#include "krylov_operators.h"

STABLE_TORCH_LIBRARY_IMPL(surm_kernels, CPU, m) { surm::glue::implement_krylov<surm::glue::CpuKernels>(m); }
