// The CUDA kernels as the operators of *_operators.h call them. The launchers know nothing of
// torch: device, stream and workspace come from here. Nothing waits for the device.
#pragma once

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/grid.h"
#include "cuda/grid_dense.h"
#include "cuda/ldr.h"
#include "cuda/stochastic.h"
#include "glue.h"

namespace surm::glue {

// Makes the device of a tensor the current one and knows its stream, as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();

  void* stream() const { return stream_; }

 private:
  struct Guard;
  std::unique_ptr<Guard> guard_;
  void* stream_ = nullptr;
};

// So many bytes on the device of a tensor. They may be given back as soon as the kernels that use them are queued: the
// allocator hands them out again on the same stream only.
Tensor workspace(const Tensor& like, int64_t bytes);

// The operator and the sizes of a problem, for messages.
inline std::string text_of(const GridShape& shape, const char* part) {
  std::ostringstream text;
  text << "grid" << part << " with " << shape.out_blocks << " x " << shape.in_blocks << " blocks of " << shape.rows
       << " x " << shape.columns;
  return text.str();
}

inline std::string text_of(const LdrShape& shape, const char* part) {
  std::ostringstream text;
  text << "ldr" << part << " with rank " << shape.rank << ", " << shape.out_size << " of " << shape.size << " outputs, "
       << shape.in_size << " inputs";
  return text.str();
}

// Raises what a launcher reports: the operator, its sizes and CUDA's own message.
inline void check_launch(int error, const std::string& text) {
  STD_TORCH_CHECK(error == 0, "surm_kernels: ", text, " failed on CUDA: ", surm_cuda_error_string(error));
}

template <class Shape>
void check_launch(int error, const char* part, const Shape& shape) {
  if (error == 0) return;
  std::ostringstream text;
  text << text_of(shape, part) << " and " << shape.groups << " x " << shape.tokens << " tokens";
  check_launch(error, text.str());
}

class CudaKernels {
 public:
  static Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> size) { return empty(like, size); }

  static void matmul(const GridShape& shape, const Tensor& x, const void* values, ConstRows base, double scale,
                     void* y) {
    const OnDevice device(x);
    Tensor memory = workspace(x, surm_cuda_grid_workspace_bytes(storage_type(x), &shape, false));
    check_launch(surm_cuda_grid_matmul(storage_type(x), &shape, rows_of(x), values, base, scale, y,
                                       memory.mutable_data_ptr(), device.stream()),
                 "", shape);
  }

  static void backward(const GridShape& shape, const Tensor& g, const Tensor& x, const void* values, double scale,
                       void* x_gradient, void* gradient) {
    const OnDevice device(x);
    Tensor memory = workspace(x, surm_cuda_grid_workspace_bytes(storage_type(x), &shape, true));
    check_launch(surm_cuda_grid_backward(storage_type(x), &shape, rows_of(g), rows_of(x), values, scale, x_gradient,
                                         gradient, memory.mutable_data_ptr(), device.stream()),
                 x_gradient == nullptr ? "_pullback" : "_backward", shape);
  }

  static int64_t spectrum_size(const GridShape& shape, const Tensor& values) {
    return surm_cuda_grid_spectrum_size(storage_type(values), &shape);
  }

  static void spectrum(const GridShape& shape, const Tensor& values, void* spectrum) {
    const OnDevice device(values);
    check_launch(
        surm_cuda_grid_spectrum(storage_type(values), &shape, values.const_data_ptr(), spectrum, device.stream()),
        "_spectrum", shape);
  }

  // False, and nothing done, where the spectrum belongs to other sizes.
  static bool matmul_by_spectrum(const GridShape& shape, const Tensor& x, const Tensor& spectrum, ConstRows base,
                                 double scale, void* y) {
    if (spectrum.numel() != surm_cuda_grid_spectrum_size(storage_type(x), &shape)) return false;
    const OnDevice device(x);
    check_launch(surm_cuda_grid_matmul_by_spectrum(storage_type(x), &shape, rows_of(x), spectrum.const_data_ptr(), base,
                                                   scale, y, device.stream()),
                 "_by_spectrum", shape);
    return true;
  }

  static void dense(const GridShape& shape, const Tensor& values, void* w) {
    const OnDevice device(values);
    check_launch(surm_cuda_grid_dense(storage_type(values), &shape, values.const_data_ptr(), w, device.stream()),
                 "_dense", shape);
  }

  static void dense_adjoint(const GridShape& shape, const Tensor& w, void* gradient) {
    const OnDevice device(w);
    check_launch(surm_cuda_grid_dense_adjoint(storage_type(w), &shape, w.const_data_ptr(), gradient, device.stream()),
                 "_dense_adjoint", shape);
  }

  static void merge(const GridShape& shape, const Tensor& values, double scale, const Merge& merge) {
    const OnDevice device(values);
    check_launch(
        surm_cuda_grid_merge(storage_type(values), &shape, values.const_data_ptr(), scale, &merge, device.stream()),
        "_merge", shape);
  }

  static void stochastic_sum(int64_t rows, int64_t columns, const Merge& merge, const Tensor& addend, bool wide,
                             const Tensor& out) {
    const OnDevice device(out);
    const int error = surm_cuda_stochastic_sum(rows, columns, &merge, addend.const_data_ptr(), addend.stride(0), wide,
                                               device.stream());
    check_launch(error, "stochastic_sum");
  }

  static void rounding_key(const std::vector<Numbers>& numbers, uint64_t seed, Tensor& key) {
    const OnDevice device(key);
    const int error = surm_cuda_rounding_key(numbers.data(), static_cast<int>(numbers.size()), seed,
                                             static_cast<uint64_t*>(key.mutable_data_ptr()), device.stream());
    check_launch(error, "rounding_key");
  }

  static void matmul(const LdrShape& shape, const Tensor& x, const void* left, const void* right, ConstRows base,
                     double scale, void* y) {
    const OnDevice device(x);
    Tensor memory = workspace(x, surm_cuda_ldr_workspace_bytes(storage_type(x), &shape, false));
    check_launch(surm_cuda_ldr_matmul(storage_type(x), &shape, rows_of(x), left, right, base, scale, y,
                                      memory.mutable_data_ptr(), device.stream()),
                 "", shape);
  }

  static void backward(const LdrShape& shape, const Tensor& g, const Tensor& x, const void* left, const void* right,
                       double scale, void* x_gradient, void* left_gradient, void* right_gradient) {
    const OnDevice device(x);
    Tensor memory = workspace(x, surm_cuda_ldr_workspace_bytes(storage_type(x), &shape, true));
    check_launch(surm_cuda_ldr_backward(storage_type(x), &shape, rows_of(g), rows_of(x), left, right, scale, x_gradient,
                                        left_gradient, right_gradient, memory.mutable_data_ptr(), device.stream()),
                 "_backward", shape);
  }
};

}  // namespace surm::glue
