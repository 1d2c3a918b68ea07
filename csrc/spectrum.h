// What the operators that keep the spectra of parameters share: their memory and its checks.
#pragma once

#include "glue.h"

namespace surm::glue {

// The type that tensors like this one are computed in.
inline ScalarType compute_type(const Tensor& like) {
  return like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_spectrum(const Tensor& parameter, int64_t size) {
  return empty(parameter, {size}, compute_type(parameter));
}

inline void check_spectrum(const Tensor& spectrum, const Tensor& x) {
  check_device(spectrum, "spectrum", x);
  STD_TORCH_CHECK(spectrum.scalar_type() == compute_type(x),
                  "surm_kernels: spectrum must be float32, or float64 where x is");
  STD_TORCH_CHECK(spectrum.dim() == 1 && (spectrum.numel() <= 1 || spectrum.stride(0) == 1),
                  "surm_kernels: spectrum must be one contiguous row");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(spectrum.const_data_ptr()) % 64 == 0,
                  "surm_kernels: spectrum must be aligned to 64 bytes, as new tensors are");
}

}  // namespace surm::glue
