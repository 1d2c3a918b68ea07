// The CUDA kernels as the operators of krylov_operators.h, toeplitz_operators.h and ldr_operators.h call them. The
// launchers know nothing of torch: device, stream and workspace come from here. Nothing waits for the device.
#pragma once

#include <memory>
#include <sstream>
#include <string>

#include "cuda/device.h"
#include "cuda/krylov.h"
#include "cuda/krylov_dense.h"
#include "cuda/ldr.h"
#include "cuda/toeplitz.h"
#include "cuda/toeplitz_dense.h"
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

// The launchers of a primitive, chosen by the type of its shape.
template <class Shape>
struct Launchers;

template <>
struct Launchers<KrylovShape> {
  static constexpr const char* kName = "krylov";
  static constexpr auto workspace_bytes = surm_cuda_krylov_workspace_bytes;
  static constexpr auto matmul = surm_cuda_krylov_matmul;
  static constexpr auto backward = surm_cuda_krylov_backward;
  static constexpr auto spectrum_size = surm_cuda_krylov_spectrum_size;
  static constexpr auto spectrum = surm_cuda_krylov_spectrum;
  static constexpr auto matmul_by_spectrum = surm_cuda_krylov_matmul_by_spectrum;
  static constexpr auto dense = surm_cuda_krylov_dense;
  static constexpr auto dense_adjoint = surm_cuda_krylov_dense_adjoint;
  static constexpr auto merge = surm_cuda_krylov_merge;
};

template <>
struct Launchers<ToeplitzShape> {
  static constexpr const char* kName = "toeplitz";
  static constexpr auto workspace_bytes = surm_cuda_toeplitz_workspace_bytes;
  static constexpr auto matmul = surm_cuda_toeplitz_matmul;
  static constexpr auto backward = surm_cuda_toeplitz_backward;
  static constexpr auto spectrum_size = surm_cuda_toeplitz_spectrum_size;
  static constexpr auto spectrum = surm_cuda_toeplitz_spectrum;
  static constexpr auto matmul_by_spectrum = surm_cuda_toeplitz_matmul_by_spectrum;
  static constexpr auto dense = surm_cuda_toeplitz_dense;
  static constexpr auto dense_adjoint = surm_cuda_toeplitz_dense_adjoint;
  static constexpr auto merge = surm_cuda_toeplitz_merge;
};

template <>
struct Launchers<LdrShape> {
  static constexpr const char* kName = "ldr";
};

// The sizes of a problem, for messages.
inline std::string sizes(const KrylovShape& shape) {
  std::ostringstream text;
  text << shape.out_blocks << " x " << shape.in_blocks << " blocks of " << shape.block << " and ";
  return text.str();
}

inline std::string sizes(const ToeplitzShape& shape) {
  std::ostringstream text;
  text << shape.out_blocks << " x " << shape.in_blocks << " blocks of " << shape.rows << " x " << shape.columns
       << " and ";
  return text.str();
}

inline std::string sizes(const LdrShape& shape) {
  std::ostringstream text;
  text << "rank " << shape.rank << ", " << shape.out_size << " of " << shape.size << " outputs, " << shape.in_size
       << " inputs and ";
  return text.str();
}

// Raises what a launcher reports: the operator, its sizes and CUDA's own message.
template <class Shape>
void check_launch(int error, const char* suffix, const Shape& shape) {
  STD_TORCH_CHECK(error == 0, "surm_kernels: ", Launchers<Shape>::kName, suffix, " with ", sizes(shape), shape.groups,
                  " x ", shape.tokens, " tokens failed on CUDA: ", surm_cuda_error_string(error));
}

class CudaKernels {
 public:
  static Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> size) { return empty(like, size); }

  template <class Shape>
  static void matmul(const Shape& shape, const Tensor& x, const void* parameter, ConstRows base, double scale,
                     void* y) {
    using L = Launchers<Shape>;
    const OnDevice device(x);
    Tensor memory = workspace(x, L::workspace_bytes(storage_type(x), &shape, false));
    check_launch(L::matmul(storage_type(x), &shape, rows_of(x), parameter, base, scale, y, memory.mutable_data_ptr(),
                           device.stream()),
                 "", shape);
  }

  template <class Shape>
  static void backward(const Shape& shape, const Tensor& g, const Tensor& x, const void* parameter, double scale,
                       void* x_gradient, void* gradient) {
    using L = Launchers<Shape>;
    const OnDevice device(x);
    Tensor memory = workspace(x, L::workspace_bytes(storage_type(x), &shape, true));
    check_launch(L::backward(storage_type(x), &shape, rows_of(g), rows_of(x), parameter, scale, x_gradient, gradient,
                             memory.mutable_data_ptr(), device.stream()),
                 x_gradient == nullptr ? "_pullback" : "_backward", shape);
  }

  template <class Shape>
  static int64_t spectrum_size(const Shape& shape, const Tensor& parameter) {
    return Launchers<Shape>::spectrum_size(storage_type(parameter), &shape);
  }

  template <class Shape>
  static void spectrum(const Shape& shape, const Tensor& parameter, void* spectrum) {
    const OnDevice device(parameter);
    check_launch(Launchers<Shape>::spectrum(storage_type(parameter), &shape, parameter.const_data_ptr(), spectrum,
                                            device.stream()),
                 "_spectrum", shape);
  }

  // False, and nothing done, where the spectrum belongs to other sizes.
  template <class Shape>
  static bool matmul_by_spectrum(const Shape& shape, const Tensor& x, const Tensor& spectrum, ConstRows base,
                                 double scale, void* y) {
    using L = Launchers<Shape>;
    if (spectrum.numel() != L::spectrum_size(storage_type(x), &shape)) return false;
    const OnDevice device(x);
    check_launch(L::matmul_by_spectrum(storage_type(x), &shape, rows_of(x), spectrum.const_data_ptr(), base, scale, y,
                                       device.stream()),
                 "_by_spectrum", shape);
    return true;
  }

  template <class Shape>
  static void dense(const Shape& shape, const Tensor& parameter, void* w) {
    const OnDevice device(parameter);
    check_launch(
        Launchers<Shape>::dense(storage_type(parameter), &shape, parameter.const_data_ptr(), w, device.stream()),
        "_dense", shape);
  }

  template <class Shape>
  static void dense_adjoint(const Shape& shape, const Tensor& w, void* gradient) {
    const OnDevice device(w);
    check_launch(
        Launchers<Shape>::dense_adjoint(storage_type(w), &shape, w.const_data_ptr(), gradient, device.stream()),
        "_dense_adjoint", shape);
  }

  template <class Shape>
  static void merge(const Shape& shape, const Tensor& parameter, double scale, const Merge& merge) {
    const OnDevice device(parameter);
    check_launch(Launchers<Shape>::merge(storage_type(parameter), &shape, parameter.const_data_ptr(), scale, &merge,
                                         device.stream()),
                 "_merge", shape);
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
