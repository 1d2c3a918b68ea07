// The instruction set that serves this process: the widest the machine has, or what SURM_KERNELS_ISA asks for.
#pragma once

#include "diagonal.h"
#include "grid.h"
#include "kronecker.h"
#include "ldr.h"
#include "powers.h"
#include "stochastic.h"

namespace surm::cpu {

struct InstructionSet {
  const char* name;
  const GridKernels* grid;
  const GridDenseKernels* grid_dense;
  const LdrKernels* ldr;
  const KroneckerKernels* kronecker;
  const DiagonalKernels* diagonal;
  const PowersKernels* powers;
  const StochasticKernels* stochastic;
};

// Chosen at the first call. Throws std::runtime_error if SURM_KERNELS_ISA asks for what is not there.
const InstructionSet& instruction_set();

}  // namespace surm::cpu
