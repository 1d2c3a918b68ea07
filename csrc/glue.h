// Checks and allocation that the glue files share. The public functions have already checked what a user passes; these
// keep a direct call of a private operator from reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>

namespace surm::glue {

using torch::stable::Tensor;

inline void check_tensor(const Tensor& tensor, const char* name, int64_t dimensions, const Tensor& like) {
  STD_TORCH_CHECK(tensor.dim() == dimensions, "surm_kernels: ", name, " must have ", dimensions, " dimensions, got ",
                  tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "surm_kernels: ", name,
                  " has another dtype than the rest");
}

inline void check_size(const char* what, int64_t got, int64_t wanted) {
  STD_TORCH_CHECK(got == wanted, "surm_kernels: ", what, " must be ", wanted, ", got ", got);
}

inline void check_sign(int64_t sign) {
  STD_TORCH_CHECK(sign == 1 || sign == -1, "surm_kernels: sign must be 1 or -1, got ", sign);
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size) {
  return torch::stable::new_empty(like, size);
}

}  // namespace surm::glue
