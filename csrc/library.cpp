// What the compiled library says of itself. The operators are in the file of their primitive, on torch's stable ABI:
// they implement the schemas that surm_kernels/ops defines, in the namespace that the build is told (SURM_NAMESPACE).
#include <exception>
#include <string>

#include "cpu/instruction_set.h"

// What the Python side shows: the name of the instruction set, or the reason why there is none after "error: ".
extern "C" __attribute__((visibility("default"))) const char* surm_kernels_instruction_set() {
  try {
    return surm::cpu::instruction_set().name;
  } catch (const std::exception& error) {
    static const std::string message = std::string("error: ") + error.what();
    return message.c_str();
  }
}

// The CUDA architectures that were compiled, empty if none.
extern "C" __attribute__((visibility("default"))) const char* surm_kernels_cuda_architectures() {
#if SURM_WITH_CUDA
  return SURM_CUDA_ARCHITECTURES;
#else
  return "";
#endif
}
