// The dense matrix of a block Toeplitz or Hankel matrix, merging it into a weight, and the sums along its diagonals.
#include "toeplitz_dense.h"
#include "windows.h"

namespace {

surm::cuda::Windows windows_of(const surm::ToeplitzShape& shape) {
  return {shape.groups * shape.out_blocks, shape.in_blocks, shape.rows, shape.columns,
          shape.reflected ? surm::cuda::Windows::kHankel : surm::cuda::Windows::kToeplitz};
}

}  // namespace

extern "C" int surm_cuda_toeplitz_dense(surm::StorageType type, const surm::ToeplitzShape* shape, const void* t,
                                        void* w, void* stream) {
  return surm::cuda::lay_out(type, windows_of(*shape), t, w, stream);
}

extern "C" int surm_cuda_toeplitz_dense_adjoint(surm::StorageType type, const surm::ToeplitzShape* shape, const void* w,
                                                void* t, void* stream) {
  return surm::cuda::sum_windows(type, windows_of(*shape), w, t, stream);
}

extern "C" int surm_cuda_toeplitz_merge(surm::StorageType type, const surm::ToeplitzShape* shape, const void* t,
                                        double scale, const surm::Merge* merge, void* stream) {
  return surm::cuda::add_windows(type, windows_of(*shape), t, scale, *merge, stream);
}
