// The dense matrix of a grid of blocks, merging it into a weight, and the sums along its diagonals.
#include "grid_dense.h"
#include "plan/block_kinds.h"
#include "windows.h"

namespace {

surm::cuda::Windows windows_of(const surm::GridShape& shape) {
  const surm::Block block(shape);
  return {shape.groups * shape.out_blocks,  shape.in_blocks, shape.rows,  shape.columns, block.count(),
          static_cast<int>(block.offset()), block.rising(),  block.wrap()};
}

}  // namespace

extern "C" int surm_cuda_grid_dense(surm::StorageType type, const surm::GridShape* shape, const void* v, void* w,
                                    void* stream) {
  return surm::cuda::lay_out(type, windows_of(*shape), v, w, stream);
}

extern "C" int surm_cuda_grid_dense_adjoint(surm::StorageType type, const surm::GridShape* shape, const void* w,
                                            void* v, void* stream) {
  return surm::cuda::sum_windows(type, windows_of(*shape), w, v, stream);
}

extern "C" int surm_cuda_grid_merge(surm::StorageType type, const surm::GridShape* shape, const void* v, double scale,
                                    const surm::Merge* merge, void* stream) {
  return surm::cuda::add_windows(type, windows_of(*shape), v, scale, *merge, stream);
}
