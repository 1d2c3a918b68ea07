// The dense matrix of a block f-circulant, merging it into a weight, and the sums along its diagonals.
#include "krylov_dense.h"
#include "windows.h"

namespace {

surm::cuda::Windows windows_of(const surm::KrylovShape& shape) {
  return {shape.groups * shape.out_blocks, shape.in_blocks, shape.block, shape.block,
          surm::cuda::Windows::kCirculant, shape.sign};
}

}  // namespace

extern "C" int surm_cuda_krylov_dense(surm::StorageType type, const surm::KrylovShape* shape, const void* v, void* w,
                                      void* stream) {
  return surm::cuda::lay_out(type, windows_of(*shape), v, w, stream);
}

extern "C" int surm_cuda_krylov_dense_adjoint(surm::StorageType type, const surm::KrylovShape* shape, const void* w,
                                              void* v, void* stream) {
  return surm::cuda::sum_windows(type, windows_of(*shape), w, v, stream);
}

extern "C" int surm_cuda_krylov_merge(surm::StorageType type, const surm::KrylovShape* shape, const void* v,
                                      double scale, const surm::Merge* merge, void* stream) {
  return surm::cuda::add_windows(type, windows_of(*shape), v, scale, *merge, stream);
}
