// Blocks whose entries repeat along diagonals: every thread writes a few neighbouring entries of some rows, gathered
// from the values of their block, which stay in L1; the adjoint sums one diagonal a lane, so that it reads rows in
// order.
#include "matrices.cuh"
#include "stochastic_row.cuh"
#include "windows.h"

namespace surm::cuda {
namespace {

// ---- entries --------------------------------------------------------------------------------------------------------

// The value that an entry repeats, counted from the first of all values, and whether its sign is turned.
struct Origin {
  int64_t value;
  bool turned;
};

// A thread's part of the whole matrix, a few neighbouring columns of kRowsOfThread rows; there may be none. Its columns
// lie in one block, (p, q), where the first entry is (i, j).
constexpr int kThreads = 256, kRowsOfThread = 8;

struct Patch {
  int64_t row, end_row, column;
  int64_t p, q;
  int i, j;

  __device__ Patch(const Windows& windows, int count) {
    const int64_t across = windows.width() / count, item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    row = item / across * kRowsOfThread;
    column = item % across * count;
    end_row = row + kRowsOfThread < windows.height() ? row + kRowsOfThread : windows.height();
    p = row / windows.rows;
    q = column / windows.columns;
    i = static_cast<int>(row % windows.rows);
    j = static_cast<int>(column % windows.columns);
  }

  __device__ void next_row(const Windows& windows) {
    ++row;
    if (++i < windows.rows) return;
    i = 0;
    ++p;
  }

  // Of entry (i, j + e).
  __device__ Origin origin(const Windows& windows, int e) const {
    int value = windows.rising ? i + j + e : i - j - e + windows.offset;
    const bool wraps = value < 0;
    if (wraps) value += static_cast<int>(windows.rows);
    return {(p * windows.column_blocks + q) * windows.count + value, wraps && windows.wrap < 0};
  }
};

// `kernel` for all patches of `count` columns.
template <class Kernel, class... Arguments>
int launch_patches(Kernel kernel, const Windows& windows, int count, void* stream, Arguments... arguments) {
  const int64_t patches = divide_up(windows.height(), kRowsOfThread) * (windows.width() / count);
  const int64_t blocks = divide_up(patches, kThreads);
  if (blocks > INT32_MAX || windows.count > INT32_MAX) return cudaErrorInvalidValue;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, windows, arguments...);
}

// ---- laying out -----------------------------------------------------------------------------------------------------

// The type of the elements does not matter beyond its sign bit, so one kernel serves all types of a size.
template <class Bits, int kCount>
__global__ void __launch_bounds__(kThreads)
    lay_out_kernel(Windows windows, const Bits* __restrict__ values, Bits* __restrict__ w) {
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  for (Patch patch(windows, kCount); patch.row < patch.end_row; patch.next_row(windows)) {
    Bits entries[kCount];
    SURM_UNROLL
    for (int e = 0; e < kCount; ++e) {
      const Origin origin = patch.origin(windows, e);
      entries[e] = static_cast<Bits>(values[origin.value] ^ (origin.turned ? kSign : Bits{0}));
    }
    store_neighbours<kCount>(entries, w + patch.row * windows.width() + patch.column);
  }
}

template <class Bits>
int lay_out_bits(const Windows& windows, const void* values, void* w, void* stream) {
  constexpr int kCount = 16 / sizeof(Bits);
  const auto* from = static_cast<const Bits*>(values);
  auto* to = static_cast<Bits*>(w);
  if (windows.columns % kCount == 0 && aligned(Matrix<Bits>{to, windows.width()}, kCount)) {
    return launch_patches(lay_out_kernel<Bits, kCount>, windows, kCount, stream, from, to);
  }
  return launch_patches(lay_out_kernel<Bits, 1>, windows, 1, stream, from, to);
}

// ---- merging --------------------------------------------------------------------------------------------------------

// The entries of a patch's row as they follow from values of any type.
template <class Storage, int kCount, class Scalar>
__device__ __forceinline__ void gather(const Windows& windows, const Patch& patch, const void* values,
                                       Scalar* entries) {
  SURM_UNROLL
  for (int e = 0; e < kCount; ++e) {
    const Origin origin = patch.origin(windows, e);
    const auto value = static_cast<Scalar>(widened(static_cast<const Storage*>(values)[origin.value]));
    entries[e] = origin.turned ? -value : value;
  }
}

template <int kCount, class Scalar>
__device__ __forceinline__ void gather(const Windows& windows, const Patch& patch, StorageType type, const void* values,
                                       Scalar* entries) {
  if (type == StorageType::kFloat64) {
    gather<double, kCount>(windows, patch, values, entries);
  } else if (type == StorageType::kFloat32) {
    gather<float, kCount>(windows, patch, values, entries);
  } else if (type == StorageType::kBFloat16) {
    gather<BFloat16, kCount>(windows, patch, values, entries);
  } else {
    gather<Float16, kCount>(windows, patch, values, entries);
  }
}

// The weight may be out: a thread reads its entries before it writes them.
template <class Row, class Weight, class Out, int kCount>
__global__ void __launch_bounds__(kThreads, 4)  // for more blocks than that ptxas would spill
    add_kernel(Windows windows, StorageType type, const void* __restrict__ values, double scale,
               Matrix<const Weight> weight, Matrix<Out> out, const uint64_t* __restrict__ key) {
  using Scalar = std::common_type_t<ComputeType<Weight>, ComputeType<Out>>;
  const auto factor = static_cast<Scalar>(scale);
  for (Patch patch(windows, kCount); patch.row < patch.end_row; patch.next_row(windows)) {
    Weight before[kCount];
    Scalar entries[kCount];
    Out sums[kCount];
    const Row row(key, patch.row);
    load_neighbours<kCount>(weight.data + patch.row * weight.stride + patch.column, before);
    gather<kCount>(windows, patch, type, values, entries);
    SURM_UNROLL
    for (int e = 0; e < kCount; ++e) {
      const Scalar sum = widened(before[e]) + product(factor, entries[e]);
      sums[e] = row.template rounded<Out>(static_cast<ComputeType<Out>>(sum), patch.column + e);
    }
    store_neighbours<kCount>(sums, out.data + patch.row * out.stride + patch.column);
  }
}

template <class Row, class Weight, class Out>
int add(StorageType type, const Windows& windows, const void* values, double scale, const Merge& merge, void* stream) {
  constexpr int kCount = 16 / (sizeof(Weight) < sizeof(Out) ? sizeof(Weight) : sizeof(Out));
  const Matrix<const Weight> weight{static_cast<const Weight*>(merge.weight), merge.weight_stride};
  const Matrix<Out> out{static_cast<Out*>(merge.out), merge.out_stride};
  const bool whole = windows.columns % kCount == 0 && aligned(weight, kCount) && aligned(out, kCount);
  return launch_patches(whole ? add_kernel<Row, Weight, Out, kCount> : add_kernel<Row, Weight, Out, 1>, windows,
                        whole ? kCount : 1, stream, type, values, scale, weight, out, merge.key);
}

// ---- the adjoint ----------------------------------------------------------------------------------------------------

// A warp's lanes have neighbouring diagonals, so that in every row they read neighbouring entries; the warps of a
// thread block share the rows.
constexpr int kLanes = 32, kWarps = 16;

// Where row i of a block meets the diagonal of a value, which may be outside the block.
struct Crossing {
  int64_t j;
  bool turned;
};

__device__ Crossing crossing_of(const Windows& windows, int64_t i, int64_t value) {
  if (windows.rising) return {value - i, false};
  const int64_t j = i - value + windows.offset;
  return j < 0 && windows.wrap != 0 ? Crossing{j + windows.rows, windows.wrap < 0} : Crossing{j, false};
}

template <class Storage>
__global__ void __launch_bounds__(kLanes* kWarps)
    sum_kernel(Windows windows, const Storage* __restrict__ w, Storage* __restrict__ values) {
  using Scalar = ComputeType<Storage>;
  const int64_t size = windows.count, tiles = divide_up(size, kLanes), block = blockIdx.x / tiles;
  const int64_t first = blockIdx.x % tiles * kLanes, value = first + threadIdx.x % kLanes;
  const Storage* corner = w + block / windows.column_blocks * windows.rows * windows.width() +
                          block % windows.column_blocks * windows.columns;
  int64_t row = 0, end = windows.rows;  // the rows that these diagonals cross
  if (windows.wrap == 0) {
    if (first >= windows.columns) row = first - windows.columns + 1;
    if (first + kLanes < end) end = first + kLanes;
  }
  Scalar sum = 0;
  for (row += threadIdx.x / kLanes; row < end; row += kWarps) {
    const Crossing crossing = crossing_of(windows, row, value);
    if (crossing.j < 0 || crossing.j >= windows.columns) continue;
    const Scalar entry = widened(corner[row * windows.width() + crossing.j]);
    sum += crossing.turned ? -entry : entry;
  }
  const Shared<Scalar> sums = shared_memory<Scalar>();
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kLanes || value >= size) return;
  for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp * kLanes + threadIdx.x];
  values[block * size + value] = rounded<Storage>(sum);
}

bool empty(const Windows& windows) { return windows.height() == 0 || windows.width() == 0; }

}  // namespace

int lay_out(StorageType type, const Windows& windows, const void* values, void* w, void* stream) {
  if (empty(windows)) return cudaSuccess;
  return with_storage(type, [&](auto tag) {
    constexpr int kBytes = sizeof(tag);
    using Bits = std::conditional_t<kBytes == 8, uint64_t, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>;
    return lay_out_bits<Bits>(windows, values, w, stream);
  });
}

int add_windows(StorageType type, const Windows& windows, const void* values, double scale, const Merge& merge,
                void* stream) {
  if (empty(windows)) return cudaSuccess;
  return with_storage(merge.weight_type, [&](auto weight_tag) {
    return with_storage(merge.out_type, [&](auto out_tag) -> int {
      using Weight = decltype(weight_tag);
      using Out = decltype(out_tag);
      if constexpr (std::is_same<Weight, Out>::value || std::is_same<Weight, float>::value ||
                    std::is_same<Out, float>::value) {
        if constexpr (sizeof(Out) == 2) {
          if (merge.key != nullptr) return add<StochasticRow, Weight, Out>(type, windows, values, scale, merge, stream);
        }
        return add<NearestRow, Weight, Out>(type, windows, values, scale, merge, stream);
      } else {
        return cudaErrorInvalidValue;
      }
    });
  });
}

int sum_windows(StorageType type, const Windows& windows, const void* w, void* values, void* stream) {
  if (empty(windows)) return cudaSuccess;
  const int64_t blocks = windows.row_blocks * windows.column_blocks * divide_up(windows.count, kLanes);
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    return launch(sum_kernel<Storage>, dim3(static_cast<unsigned>(blocks)), kLanes * kWarps,
                  kLanes * kWarps * sizeof(ComputeType<Storage>), stream, windows, static_cast<const Storage*>(w),
                  static_cast<Storage*>(values));
  });
}

}  // namespace surm::cuda
