// The operators of CUDA C++, in a namespace of their own with the same schemas: Python chooses between them, Triton and
// the reference. The kernels see no torch and the CUDA runtime is linked
// statically, so the library loads on a CPU-only torch as well; the current stream is looked up in torch at run time.
//
// With SURM_EMULATED the tests compile this file and the kernels for the CPU: the operators then take CPU tensors.
#if SURM_WITH_CUDA || SURM_EMULATED

#include "cuda_kernels.h"
#include "grid_operators.h"
#include "ldr_operators.h"
#include "stochastic_operators.h"

#if SURM_EMULATED
#define SURM_CUDA_KEY CPU
#else
#define SURM_CUDA_KEY CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace surm::glue {

#if SURM_EMULATED

struct OnDevice::Guard {};

OnDevice::OnDevice(const Tensor&) {}

#else

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

}  // namespace

struct OnDevice::Guard {
  torch::stable::accelerator::DeviceGuard guard;
};

OnDevice::OnDevice(const Tensor& tensor)
    : guard_(new Guard{torch::stable::accelerator::DeviceGuard(tensor.get_device_index())}),
      stream_(current_stream(tensor.get_device_index())) {
  // torch's guard has told torch's runtime; the one linked in here keeps a current device of its own.
  const int error = surm_cuda_set_device(tensor.get_device_index());
  STD_TORCH_CHECK(error == 0, "surm_kernels: device ", tensor.get_device_index(),
                  " cannot be used: ", surm_cuda_error_string(error));
}

#endif

OnDevice::~OnDevice() = default;

Tensor workspace(const Tensor& like, int64_t bytes) { return empty(like, {bytes}, ScalarType::Byte); }

}  // namespace surm::glue

STABLE_TORCH_LIBRARY_IMPL(SURM_CUDA_NAMESPACE, SURM_CUDA_KEY, m) {
  surm::glue::implement_grid<surm::glue::CudaKernels>(m);
  surm::glue::implement_ldr<surm::glue::CudaKernels>(m);
  surm::glue::implement_stochastic<surm::glue::CudaKernels>(m);
}

// What Python asks before it chooses: bytes of shared memory that a block of threads takes at the least.

#define SURM_VISIBLE extern "C" __attribute__((visibility("default")))

SURM_VISIBLE int64_t surm_kernels_cuda_grid_shared_bytes(int64_t type, int64_t kind, int64_t out_blocks,
                                                         int64_t in_blocks, int64_t rows, int64_t columns,
                                                         int64_t gradient) {
  const surm::GridShape shape{1, 2, out_blocks, in_blocks, rows, columns, static_cast<surm::BlockKind>(kind), false};
  return surm_cuda_grid_shared_bytes(static_cast<surm::StorageType>(type), &shape, gradient != 0);
}

SURM_VISIBLE int64_t surm_kernels_cuda_ldr_shared_bytes(int64_t type, int64_t rank, int64_t size, int64_t gradient) {
  const surm::LdrShape shape{1, 2, rank, size, size, size, false, false};
  return surm_cuda_ldr_shared_bytes(static_cast<surm::StorageType>(type), &shape, gradient != 0);
}

#endif  // SURM_WITH_CUDA || SURM_EMULATED
