// Chooses among the instruction sets the kernels were compiled for.
#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace surm::cpu {

#define SURM_DECLARE_KERNELS(name)                   \
  namespace name {                                   \
  extern const GridKernels grid_kernels;             \
  extern const GridDenseKernels grid_dense_kernels;  \
  extern const LdrKernels ldr_kernels;               \
  extern const KroneckerKernels kronecker_kernels;   \
  extern const DiagonalKernels diagonal_kernels;     \
  extern const PowersKernels powers_kernels;         \
  extern const StochasticKernels stochastic_kernels; \
  }
#define SURM_KERNELS_OF(name) \
  {#name,                     \
   &name::grid_kernels,       \
   &name::grid_dense_kernels, \
   &name::ldr_kernels,        \
   &name::kronecker_kernels,  \
   &name::diagonal_kernels,   \
   &name::powers_kernels,     \
   &name::stochastic_kernels}

SURM_DECLARE_KERNELS(baseline)
#if SURM_HAS_AVX2
SURM_DECLARE_KERNELS(avx2)
#endif
#if SURM_HAS_AVX512
SURM_DECLARE_KERNELS(avx512)
#endif

namespace {

// What was compiled and runs here, the widest first.
std::vector<InstructionSet> usable() {
  std::vector<InstructionSet> sets;
#if SURM_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    sets.push_back(SURM_KERNELS_OF(avx512));
  }
#endif
#if SURM_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    sets.push_back(SURM_KERNELS_OF(avx2));
  }
#endif
  sets.push_back(SURM_KERNELS_OF(baseline));
  return sets;
}

InstructionSet choose() {
  const std::vector<InstructionSet> sets = usable();
  const char* variable = std::getenv("SURM_KERNELS_ISA");
  const std::string wanted = variable == nullptr || *variable == '\0' ? "auto" : variable;
  if (wanted == "auto") return sets.front();
  std::string names = "auto";
  for (const InstructionSet& set : sets) {
    if (wanted == set.name) return set;
    names += std::string(", ") + set.name;
  }
  throw std::runtime_error("SURM_KERNELS_ISA is " + wanted + ", but this build and machine offer " + names);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace surm::cpu
