// The CUDA side of the operator library. The kernels see no torch and the CUDA runtime is linked statically, so the
// library loads on a CPU-only torch as well; the current stream is looked up in torch at run time. Operators without a
// CUDA kernel run on the PyTorch reference.
#if SURM_WITH_CUDA

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/krylov_dense.h"
#include "glue.h"

using namespace surm::glue;

namespace {

void* current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  // The global scope does not have it: Python loads torch with RTLD_LOCAL.
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(function != nullptr, "surm_kernels: this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device, &stream) == 0, "surm_kernels: no current CUDA stream on device ", device);
  return stream;
}

Tensor krylov_dense(const Tensor& v_in, int64_t sign) {
  check_sign(sign);
  check_tensor(v_in, "v", 4, v_in);
  const torch::stable::accelerator::DeviceGuard guard(v_in.get_device_index());
  const Tensor v = torch::stable::contiguous(v_in);
  const int64_t groups = v.size(0), M = v.size(1), K = v.size(2), b = v.size(3);
  Tensor w = empty(v, {groups, M * b, K * b});
  const int error =
      surm_cuda_krylov_dense(v.const_data_ptr(), w.mutable_data_ptr(), groups * M, K, b, static_cast<int>(sign),
                             static_cast<int>(v.element_size()), current_stream(v.get_device_index()));
  STD_TORCH_CHECK(error == 0, "surm_kernels: krylov_dense of ", groups, " x ", M, " x ", K, " blocks of ", b,
                  " failed: ", surm_cuda_error_string(error));
  return w;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(surm_kernels, CUDA, m) { m.impl("krylov_dense", TORCH_BOX(&krylov_dense)); }

#endif  // SURM_WITH_CUDA
