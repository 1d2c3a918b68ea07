// The schemas of the operators that CUDA has kernels for besides the CPU: the same in every namespace they are in.
#pragma once

#include <torch/csrc/stable/library.h>

namespace surm::glue {

inline void define_transforms(torch::stable::detail::StableLibrary& m) {
  m.def("krylov(Tensor x, Tensor v, Tensor? base, int sign, float scale, bool transposed) -> Tensor");
  m.def("krylov_pullback(Tensor g, Tensor x, SymInt block, int sign, float scale) -> Tensor");
  m.def("krylov_backward(Tensor g, Tensor x, Tensor v, int sign, float scale, bool transposed) -> (Tensor, Tensor)");
  m.def("krylov_dense(Tensor v, int sign) -> Tensor");
  m.def("krylov_dense_adjoint(Tensor w, SymInt block, int sign) -> Tensor");
  m.def("krylov_spectrum(Tensor v, int sign, bool transposed) -> Tensor");
  m.def(
      "krylov_by_spectrum(Tensor x, Tensor spectrum, Tensor? base, SymInt outputs, SymInt inputs, SymInt block, int "
      "sign, float scale) -> Tensor");
  m.def("krylov_merge(Tensor weight, Tensor v, int sign, float scale, Tensor(a!) out) -> ()");

  m.def(
      "toeplitz(Tensor x, Tensor t, Tensor? base, SymInt columns, float scale, bool transposed, bool reflected) -> "
      "Tensor");
  m.def("toeplitz_pullback(Tensor g, Tensor x, SymInt rows, SymInt columns, float scale, bool reflected) -> Tensor");
  m.def(
      "toeplitz_backward(Tensor g, Tensor x, Tensor t, SymInt columns, float scale, bool reflected) -> (Tensor, "
      "Tensor)");
  m.def("toeplitz_dense(Tensor t, SymInt columns, bool reflected) -> Tensor");
  m.def("toeplitz_dense_adjoint(Tensor w, SymInt rows, SymInt columns, bool reflected) -> Tensor");
  m.def("toeplitz_spectrum(Tensor t, SymInt columns, bool transposed, bool reflected) -> Tensor");
  m.def(
      "toeplitz_by_spectrum(Tensor x, Tensor spectrum, Tensor? base, SymInt outputs, SymInt inputs, SymInt rows, "
      "SymInt columns, float scale, bool reflected) -> Tensor");
  m.def("toeplitz_merge(Tensor weight, Tensor t, SymInt columns, bool reflected, float scale, Tensor(a!) out) -> ()");

  m.def(
      "ldr(Tensor x, Tensor left, Tensor right, Tensor? base, SymInt width, float scale, bool transposed, bool "
      "reflected) -> Tensor");
  m.def("ldr_pullback_left(Tensor g, Tensor x, Tensor right, float scale, bool reflected) -> Tensor");
  m.def("ldr_pullback_right(Tensor g, Tensor x, Tensor left, float scale, bool reflected) -> Tensor");
  m.def(
      "ldr_backward(Tensor g, Tensor x, Tensor left, Tensor right, float scale, bool reflected) -> (Tensor, Tensor, "
      "Tensor)");
}

}  // namespace surm::glue
