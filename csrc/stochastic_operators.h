// The operators of stochastic rounding over the kernels of any device: checks and allocation.
#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "glue.h"
#include "merge.h"

namespace surm::glue {

template <class Kernels>
void stochastic_sum(const Tensor& weight_in, const Tensor& addend_in, const Tensor& key, Tensor out) {
  STD_TORCH_CHECK(out.dim() == 2, "surm_kernels: out must be a matrix");
  const bool wide = addend_in.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(wide || addend_in.scalar_type() == out.scalar_type(),
                  "surm_kernels: addend must be float32 or have the dtype of out");
  const int64_t rows = out.size(0), columns = out.size(1);
  const Tensor weight = with_contiguous_rows(weight_in), addend = with_contiguous_rows(addend_in);
  STD_TORCH_CHECK(addend.dim() == 2 && addend.size(0) == rows && addend.size(1) == columns,
                  "surm_kernels: addend must be a matrix of ", rows, " x ", columns);
  check_device(addend, "addend", out);
  const Merge merge = merge_of(weight, out, rows, columns, key);
  if (out.numel() > 0) Kernels::stochastic_sum(rows, columns, merge, addend, wide, out);
}

// The key of a weight that is formed of these tensors.
template <class Kernels>
Tensor rounding_key(const Tensor& first, const std::vector<Tensor>& others, int64_t seed) {
  std::vector<Tensor> held{made_contiguous(first)};
  for (const Tensor& other : others) {
    check_device(other, "a tensor", first);
    held.push_back(made_contiguous(other));
  }
  std::vector<Numbers> numbers;
  for (const Tensor& each : held) {
    numbers.push_back({each.const_data_ptr(), each.numel(), static_cast<int>(each.element_size())});
  }
  Tensor key = empty(first, {}, ScalarType::Long);
  Kernels::rounding_key(numbers, static_cast<uint64_t>(seed), key);
  return key;
}

template <class Kernels>
void implement_stochastic(torch::stable::detail::StableLibrary& m) {
  m.impl("stochastic_sum", SURM_BOX(stochastic_sum<Kernels>));
  m.impl("rounding_key", SURM_BOX(rounding_key<Kernels>));
}

}  // namespace surm::glue
