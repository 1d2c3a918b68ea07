// The dense matrix of a grid of blocks and the sums along its diagonals, compiled once per instruction set: row i of a
// block is a window of its diagonals (windows.h).
#include "grid.h"
#include "layouts.h"
#include "windows.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

Windows windows_of(const GridShape& shape) {
  return {shape.groups * shape.out_blocks, shape.in_blocks, shape.rows, shape.columns, Block(shape).rising()};
}

// The diagonals of every block.
template <class Value>
Buffer<Value> diagonals_of(const GridShape& shape, const Value* v, const ParallelFor& parallel) {
  const Windows windows = windows_of(shape);
  const Layout layout = Block(shape).diagonals();
  const int64_t length = windows.diagonals();
  Buffer<Value> diagonals(windows.blocks() * length);
  parallel(windows.blocks(), windows_grain(length), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      embed(layout, v + block * layout.count, length, diagonals.data() + block * length);
    }
  });
  return diagonals;
}

void dense(StorageType type, const GridShape& shape, const void* v, void* w, const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    const auto diagonals = diagonals_of(shape, static_cast<const Storage*>(v), parallel);
    lay_out(windows_of(shape), diagonals.data(), static_cast<Storage*>(w), parallel);
  });
}

void adjoint(StorageType type, const GridShape& shape, const void* w, void* v, const ParallelFor& parallel) {
  const Layout layout = Block(shape).diagonals();
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    sum_windows(windows_of(shape), static_cast<const Storage*>(w), parallel, [&](int64_t block, const auto* sums) {
      unembed(layout, sums, static_cast<Storage*>(v) + block * layout.count);
    });
  });
}

template <class Scalar, class Storage>
void merge_in(const GridShape& shape, const Storage* v, double scale, const Merge& merge, const ParallelFor& parallel) {
  const Windows windows = windows_of(shape);
  const auto scaled = scaled_values<Scalar>(v, windows.blocks() * Block(shape).count(), scale, parallel);
  add_windows(windows, diagonals_of(shape, scaled.data(), parallel).data(), merge, parallel);
}

void merge(StorageType type, const GridShape& shape, const void* v, double scale, const Merge& merge,
           const ParallelFor& parallel) {
  with_storage(type, [&](auto tag) {
    const auto* values = static_cast<const decltype(tag)*>(v);
    merge.in_float64() ? merge_in<double>(shape, values, scale, merge, parallel)
                       : merge_in<float>(shape, values, scale, merge, parallel);
  });
}

}  // namespace

extern const GridDenseKernels grid_dense_kernels;
const GridDenseKernels grid_dense_kernels{dense, adjoint, merge};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
