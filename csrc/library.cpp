// The operator library surm_kernels: all schemas, and what the compiled library says of itself. The operators are in
// the file of their primitive, on torch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <exception>
#include <string>

#include "cpu/instruction_set.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(surm_kernels, m) {
  surm::glue::define_transforms(m);

  m.def("kronecker(Tensor x, Tensor a, Tensor b, Tensor? base, float scale, bool transposed) -> Tensor");
  m.def("kronecker_pullback_left(Tensor g, Tensor x, Tensor b, float scale) -> Tensor");
  m.def("kronecker_pullback_right(Tensor g, Tensor x, Tensor a, float scale) -> Tensor");
  m.def("kronecker_backward(Tensor g, Tensor x, Tensor a, Tensor b, float scale) -> (Tensor, Tensor, Tensor)");

  m.def("diagonal(Tensor x, Tensor u, Tensor s, Tensor v, Tensor? base, float scale) -> Tensor");
  m.def("diagonal_pullback(Tensor g, Tensor x, Tensor u, Tensor v, float scale) -> Tensor");
  m.def("diagonal_backward(Tensor g, Tensor x, Tensor u, Tensor s, Tensor v, float scale) -> (Tensor, Tensor)");

  m.def("powers(Tensor v, SymInt columns) -> Tensor");
  m.def("empty_rows(Tensor x, SymInt columns) -> Tensor");
}

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
