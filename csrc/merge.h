// What the operators that merge a structured matrix into a weight share: the checks of the two matrices.
#pragma once

#include "glue.h"

namespace surm::glue {

// `weight`, `out` and `key` as the kernels take them; all must outlive the result, and `weight` have contiguous rows.
// With a key the sum is rounded stochastically.
inline surm::Merge merge_of(const Tensor& weight, Tensor& out, int64_t rows, int64_t columns,
                            const std::optional<Tensor>& key) {
  const Tensor* matrices[] = {&weight, &out};
  const char* names[] = {"weight", "out"};
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(matrices[i]->dim() == 2 && matrices[i]->size(0) == rows && matrices[i]->size(1) == columns,
                    "surm_kernels: ", names[i], " must be a matrix of ", rows, " x ", columns);
  }
  check_device(weight, "weight", out);
  STD_TORCH_CHECK(out.stride(1) == 1 || columns <= 1, "surm_kernels: the values of a row of out must be contiguous");
  constexpr auto kFloat = ScalarType::Float;
  STD_TORCH_CHECK(
      weight.scalar_type() == out.scalar_type() || weight.scalar_type() == kFloat || out.scalar_type() == kFloat,
      "surm_kernels: weight and out must have one dtype, or one of them float32");
  STD_TORCH_CHECK(!key.has_value() || out.element_size() == 2,
                  "surm_kernels: out must have 16 bits to be rounded stochastically");
  if (key.has_value()) {
    check_device(*key, "key", out);
    STD_TORCH_CHECK(key->scalar_type() == ScalarType::Long && key->numel() == 1,
                    "surm_kernels: key must be one number in int64");
  }
  return {storage_type(weight),
          storage_type(out),
          weight.const_data_ptr(),
          weight.stride(0),
          out.mutable_data_ptr(),
          out.stride(0),
          key.has_value() ? static_cast<const uint64_t*>(key->const_data_ptr()) : nullptr};
}

}  // namespace surm::glue
