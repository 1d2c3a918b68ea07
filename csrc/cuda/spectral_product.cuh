// Products of tokens with a grid of circulant blocks given by their spectra, and both gradients of them: the kernels.
//
// What the spectra mean is the caller's (grid.cu, ldr.cu), as on the CPU. A block of threads takes a few pairs of
// tokens (rows.cuh), whose packed rows stay in shared memory from the first load to the last store. A single circulant
// block is multiplied in the registers between the last stage in and the first stage out. With a grid of them the
// spectra of all its columns wait in shared memory while the rows are made one after another.
//
// Gradients of the parameters are sums over tokens: every block of threads sums over a fixed range of them, and the
// partial sums are added in a fixed order (sum_partials), so that a result is the same in every run.
#pragma once

#include "rows.cuh"
#include "spectral_product.h"
#include "tensor_order.cuh"

namespace surm::cuda {

template <class Scalar>
constexpr int kMostThreads = sizeof(Scalar) == 4 ? 512 : 256;

// Which pairs of tokens a block of threads works on.
struct Units {
  int tokens;               // of a group
  int units;                // of a group: a unit is what a block of threads has in shared memory at a time
  Divisor blocks_of_group;  // blocks of threads that share the units of a group
  int units_of_block;
  int pairs;       // of a unit, a power of two
  int warps_log2;  // of the warps that each of them has to itself

  __device__ __forceinline__ int group() const { return blocks_of_group.quotient(blockIdx.x); }
  __device__ __forceinline__ int first() const {
    return static_cast<int>(blockIdx.x - group() * blocks_of_group.divisor) * units_of_block;
  }
  __device__ __forceinline__ int last() const {
    const int end = first() + units_of_block;
    return end < units ? end : units;
  }
  __device__ __forceinline__ PairRange range(int unit) const {
    return {group(), unit * 2 * pairs, tokens, pairs, warps_log2};
  }
};

template <class Scalar>
struct ProductTask {
  DevicePlan<Scalar> plan;
  Units units;
  Rows x;
  Store<Scalar> to;
  const Complex<Scalar>* factors;  // (groups, rows, columns) spectra
  Divisor by_tiles, by_columns;
  int rows;           // of the grid
  int rows_of_block;  // of which a block of threads makes some
  bool twisted;
  bool conjugate;  // rows of x are reversed: the spectrum is that of the conjugate rows, conjugated
};

// How a pair of rows enters.
template <class Scalar>
__device__ __forceinline__ Entry<Scalar> entry_of(const DevicePlan<Scalar>& plan, bool twisted, bool conjugate,
                                                  Scalar first, Scalar second) {
  return {first, conjugate ? -second : second, twisted ? plan.twist : nullptr, plan.size};
}

template <class Scalar>
__device__ __forceinline__ Complex<Scalar> conjugated(const Complex<Scalar>& value, bool really) {
  return {value.re, really ? -value.im : value.im};
}

template <class Scalar>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) spectral_product(const ProductTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const PairRange range = task.units.range(task.units.first());
  const int length = plan.length, count = range.pairs * length, tiles = tiles_of(length);
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const ScaleMemory<Scalar> memory(padded_count(count) * sizeof(Complex<Scalar>), range.pairs);
  const auto enter = [&](int row) {
    const RowScale<Scalar> first = memory.scales[2 * row], second = memory.scales[2 * row + 1];
    return entry_of(plan, task.twisted, task.conjugate, first.in, second.in);
  };
  load_rows(task.x, range, length, z, memory);
  stages_in(plan, z, count, enter);
  const Complex<Scalar>* factors = task.factors + static_cast<int64_t>(range.group) * length;
  tiles_through(plan, z, count, enter, [&](Complex<Scalar>* u, int tile) {
    const Complex<Scalar>* factor = factors + (tile - task.by_tiles.quotient(tile) * tiles);
    SURM_UNROLL
    for (int k = 0; k < kTile; ++k) u[k] = turned(conjugated(u[k], task.conjugate), factor[k * tiles]);
  });
  stages_out(plan, z, count);
  store_rows(task.to, range, 0, length, z, memory);
}

// The same for a grid of blocks: x̂ of all columns in z, the rows one after another in `sum`.
template <class Scalar>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) spectral_product_grid(const ProductTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const PairRange range = task.units.range(task.units.first());
  const int columns = task.x.blocks, length = plan.length, tiles = tiles_of(length);
  const int count = range.pairs * columns * length, row_count = range.pairs * length;
  const int64_t sum_offset = padded_count(count) * sizeof(Complex<Scalar>);
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const Shared<Complex<Scalar>> sum = shared_memory<Complex<Scalar>>(sum_offset);
  const ScaleMemory<Scalar> memory(sum_offset + padded_count(row_count) * sizeof(Complex<Scalar>), range.pairs);
  const auto enter = [&](int row) {
    const int pair = task.by_columns.quotient(row);
    const RowScale<Scalar> first = memory.scales[2 * pair], second = memory.scales[2 * pair + 1];
    return entry_of(plan, task.twisted, task.conjugate, first.in, second.in);
  };
  load_rows(task.x, range, length, z, memory);
  stages_in(plan, z, count, enter);
  tiles_in(plan, z, count, enter, [&](const Complex<Scalar>* u, int tile) { write_tile(u, tile, z); });

  const int first_row = blockIdx.y * task.rows_of_block;
  for (int row = first_row; row < task.rows && row < first_row + task.rows_of_block; ++row) {
    const Complex<Scalar>* factors =
        task.factors + static_cast<int64_t>(range.group * task.rows + row) * columns * length;
    tiles_out(sum, row_count, [&](Complex<Scalar>* u, int tile) {
      const int pair = task.by_tiles.quotient(tile), within = tile - pair * tiles;
      SURM_UNROLL
      for (int k = 0; k < kTile; ++k) u[k] = {0, 0};
      for (int column = 0; column < columns; ++column) {
        const Complex<Scalar>* factor = factors + static_cast<int64_t>(column) * length + within;
        const int from = ((pair * columns + column) * tiles + within) * (kTile + 1);
        SURM_UNROLL
        for (int k = 0; k < kTile; ++k) {
          const Complex<Scalar> value = z[from + k];
          u[k] = u[k] + turned(conjugated(value, task.conjugate), factor[k * tiles]);
        }
      }
    });
    stages_out(plan, sum, row_count);
    store_rows(task.to, range, row, length, sum, memory);
  }
}

template <class Scalar>
struct BackwardTask {
  DevicePlan<Scalar> plan;
  Units units;
  Rows g, x;
  Store<Scalar> to;                // of x's gradient; null data: not wanted
  const Complex<Scalar>* factors;  // of the transposed blocks, (groups, columns, rows)
  Complex<Scalar>* kept;           // ĝ of a unit, for each block of threads, where it is not in shared memory
  Complex<Scalar>* sums;           // partial sums, for each block of threads
  int* poisoned;                   // for each block of threads: whether a token was not finite
  Divisor by_tiles, by_rows, by_columns;
  bool twisted, conjugate;
};

// What enters for a value of x where gradients of parameters are summed: g is scaled to magnitude one, so x takes the
// inverse power of two and every product keeps its own size. The scales of x say whether a row is finite.
template <class Scalar>
__device__ __forceinline__ Scalar partner(const RowScale<Scalar>& of_g, const RowScale<Scalar>& of_x) {
  return of_g.in != 0 && of_x.in != 0 ? of_g.out : 0;
}

// Whether a row of the unit was not finite, which NaN as its scale says.
template <class Scalar>
__device__ __forceinline__ bool has_poison(const ScaleMemory<Scalar>& memory, int pairs) {
  bool found = false;
  for (int row = 0; row < 2 * pairs; ++row) {
    const RowScale<Scalar> scale = memory.scales[row];
    found = found || scale.out != scale.out;
  }
  return found;
}

// Both gradients for a single block. kNear: ĝ and the sums are in shared memory beside the working row; else in the
// device's. Either way a tile of them is touched by one thread alone.
template <class Scalar, bool kNear>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) spectral_backward(const BackwardTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const int pairs = task.units.pairs, length = plan.length, count = pairs * length;
  const int tiles = tiles_of(length), all_tiles = pairs * tiles;
  const int64_t row_bytes = padded_count(count) * sizeof(Complex<Scalar>), scales = (kNear ? 3 : 1) * row_bytes;
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const Shared<Complex<Scalar>> near_kept = shared_memory<Complex<Scalar>>(kNear ? row_bytes : 0);
  const Shared<Complex<Scalar>> near_sums = shared_memory<Complex<Scalar>>(kNear ? 2 * row_bytes : 0);
  Complex<Scalar>* far_kept = kNear ? nullptr : task.kept + static_cast<int64_t>(blockIdx.x) * count;
  Complex<Scalar>* far_sums = task.sums + static_cast<int64_t>(blockIdx.x) * count;
  const ScaleMemory<Scalar> of_g(scales, pairs);
  const ScaleMemory<Scalar> of_x(scales + ScaleMemory<Scalar>::bytes(blockDim.x, pairs), pairs);

  const auto enter_g = [&](int row) {
    const RowScale<Scalar> first = of_g.scales[2 * row], second = of_g.scales[2 * row + 1];
    return entry_of(plan, task.twisted, false, first.in, second.in);
  };
  const auto enter_x = [&](int row) {
    const Scalar first = partner<Scalar>(of_g.scales[2 * row], of_x.scales[2 * row]);
    const Scalar second = partner<Scalar>(of_g.scales[2 * row + 1], of_x.scales[2 * row + 1]);
    return entry_of(plan, task.twisted, task.conjugate, first, second);
  };
  const auto g_hat = [&](int tile, int k) -> Complex<Scalar> {
    if constexpr (kNear) return near_kept[tile * (kTile + 1) + k];
    return far_kept[tile + k * all_tiles];
  };
  // The gradient of the spectrum, ĝ ∘ conj(x̂), joins the sums; u holds x̂.
  const auto add_tile = [&](const Complex<Scalar>* u, int tile, bool first) {
    SURM_UNROLL
    for (int k = 0; k < kTile; ++k) {
      const Complex<Scalar> added = turned_back(g_hat(tile, k), conjugated(u[k], task.conjugate));
      if constexpr (kNear) {
        const int at = tile * (kTile + 1) + k;
        near_sums[at] = first ? added : added + Complex<Scalar>(near_sums[at]);
      } else {
        Complex<Scalar>& sum = far_sums[tile + k * all_tiles];
        sum = first ? added : added + sum;
      }
    }
  };

  if (threadIdx.x == 0) task.poisoned[blockIdx.x] = 0;
  const int begin = task.units.first(), end = task.units.last();
  for (int unit = begin; unit < end; ++unit) {
    const PairRange range = task.units.range(unit);
    load_rows(task.g, range, length, z, of_g);
    stages_in(plan, z, count, enter_g);
    tiles_in(plan, z, count, enter_g, [&](const Complex<Scalar>* u, int tile) {
      if constexpr (kNear) {
        write_tile(u, tile, near_kept);
      } else {
        write_tile(u, tile, all_tiles, far_kept);
      }
    });
    load_rows(task.x, range, length, z, of_x);
    if (threadIdx.x == 0 && (has_poison(of_g, pairs) || has_poison(of_x, pairs))) task.poisoned[blockIdx.x] = 1;
    stages_in(plan, z, count, enter_x);
    if (task.to.rows.data == nullptr) {
      tiles_in(plan, z, count, enter_x, [&](const Complex<Scalar>* u, int tile) { add_tile(u, tile, unit == begin); });
      continue;
    }
    const Complex<Scalar>* factors = task.factors + static_cast<int64_t>(range.group) * length;
    tiles_through(plan, z, count, enter_x, [&](Complex<Scalar>* u, int tile) {
      add_tile(u, tile, unit == begin);
      const Complex<Scalar>* factor = factors + (tile - task.by_tiles.quotient(tile) * tiles);
      SURM_UNROLL
      for (int k = 0; k < kTile; ++k) u[k] = turned(conjugated(g_hat(tile, k), task.conjugate), factor[k * tiles]);
    });
    stages_out(plan, z, count);
    store_rows(task.to, range, 0, length, z, of_g);
  }
  if constexpr (kNear) {
    for (int tile = threadIdx.x; tile < all_tiles; tile += blockDim.x) {
      Complex<Scalar> u[kTile];
      read_tile(near_sums, tile, u);
      write_tile(u, tile, all_tiles, far_sums);
    }
  }
}

// Both gradients for a grid: ĝ of all rows in the device's memory, x̂ of all columns in shared memory, a sum for every
// block of the grid in the device's.
template <class Scalar>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) spectral_backward_grid(const BackwardTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const int pairs = task.units.pairs, rows = task.g.blocks, columns = task.x.blocks;
  const int length = plan.length, tiles = tiles_of(length), row_count = pairs * length;
  const int most = rows > columns ? rows : columns, g_tiles = pairs * rows * tiles;
  const int64_t sum_offset = padded_count(static_cast<int64_t>(most) * row_count) * sizeof(Complex<Scalar>);
  const int64_t scales = sum_offset + padded_count(row_count) * sizeof(Complex<Scalar>);
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const Shared<Complex<Scalar>> sum = shared_memory<Complex<Scalar>>(sum_offset);
  const ScaleMemory<Scalar> of_g(scales, pairs);
  const ScaleMemory<Scalar> of_x(scales + ScaleMemory<Scalar>::bytes(blockDim.x, pairs), pairs);
  Complex<Scalar>* g_hat = task.kept + static_cast<int64_t>(blockIdx.x) * g_tiles * kTile;
  Complex<Scalar>* sums = task.sums + static_cast<int64_t>(blockIdx.x) * rows * columns * length;

  const auto enter_g = [&](int row) {
    const int pair = task.by_rows.quotient(row);
    const RowScale<Scalar> first = of_g.scales[2 * pair], second = of_g.scales[2 * pair + 1];
    return entry_of(plan, task.twisted, false, first.in, second.in);
  };
  const auto enter_x = [&](int row) {
    const int pair = task.by_columns.quotient(row);
    const Scalar first = partner<Scalar>(of_g.scales[2 * pair], of_x.scales[2 * pair]);
    const Scalar second = partner<Scalar>(of_g.scales[2 * pair + 1], of_x.scales[2 * pair + 1]);
    return entry_of(plan, task.twisted, task.conjugate, first, second);
  };

  if (threadIdx.x == 0) task.poisoned[blockIdx.x] = 0;
  const int begin = task.units.first(), end = task.units.last();
  for (int unit = begin; unit < end; ++unit) {
    const PairRange range = task.units.range(unit);
    load_rows(task.g, range, length, z, of_g);
    stages_in(plan, z, rows * row_count, enter_g);
    tiles_in(plan, z, rows * row_count, enter_g,
             [&](const Complex<Scalar>* u, int tile) { write_tile(u, tile, g_tiles, g_hat); });
    load_rows(task.x, range, length, z, of_x);
    if (threadIdx.x == 0 && (has_poison(of_g, pairs) || has_poison(of_x, pairs))) task.poisoned[blockIdx.x] = 1;
    stages_in(plan, z, columns * row_count, enter_x);
    tiles_in(plan, z, columns * row_count, enter_x,
             [&](const Complex<Scalar>* u, int tile) { write_tile(u, tile, z); });

    for (int item = threadIdx.x; item < rows * columns * tiles; item += blockDim.x) {
      const int block = task.by_tiles.quotient(item), within = item - block * tiles;
      const int row = task.by_columns.quotient(block), column = block - row * columns;
      Complex<Scalar>* total = sums + static_cast<int64_t>(block) * length + within;
      for (int k = 0; k < kTile; ++k) {
        Complex<Scalar> added{0, 0};
        for (int pair = 0; pair < pairs; ++pair) {
          const Complex<Scalar> value = z[((pair * columns + column) * tiles + within) * (kTile + 1) + k];
          const Complex<Scalar> g = g_hat[(pair * rows + row) * tiles + within + k * g_tiles];
          added = added + turned_back(g, conjugated(value, task.conjugate));
        }
        total[k * tiles] = unit == begin ? added : total[k * tiles] + added;
      }
    }
    for (int column = 0; column < columns && task.to.rows.data != nullptr; ++column) {
      const Complex<Scalar>* factors =
          task.factors + static_cast<int64_t>(range.group * columns + column) * rows * length;
      tiles_out(sum, row_count, [&](Complex<Scalar>* u, int tile) {
        const int pair = task.by_tiles.quotient(tile), within = tile - pair * tiles;
        const Complex<Scalar>* g = g_hat + pair * rows * tiles + within;
        SURM_UNROLL
        for (int k = 0; k < kTile; ++k) {
          Complex<Scalar> total{0, 0};
          // Not unrolled, so that fewer values wait in registers.
          SURM_NO_UNROLL
          for (int row = 0; row < rows; ++row) {
            const Complex<Scalar> factor = factors[static_cast<int64_t>(row) * length + within + k * tiles];
            total = total + turned(conjugated(g[row * tiles + k * g_tiles], task.conjugate), factor);
          }
          u[k] = total;
        }
      });
      stages_out(plan, sum, row_count);
      store_rows(task.to, range, column, length, sum, of_g);
    }
    __syncthreads();
  }
}

// total[group, block, k, tile] = Σ_chunk Σ_pair partial[group, chunk, block, k, pair, tile], in a fixed order.
template <class Scalar, class Order>
struct SumTask {
  const Complex<Scalar>* partial;
  Complex<Scalar>* total;
  int chunks, pairs, tiles;
  int64_t blocks;  // of the grid
  int64_t count;   // groups · blocks · length
  Order order;     // where a value of the sums belongs in the total
};

struct SameOrder {
  __device__ __forceinline__ int64_t operator()(int64_t at) const { return at; }
};

constexpr int kSumThreads = 256, kSlices = kSumThreads / kWarp;

template <class Scalar, class Order>
__global__ void __launch_bounds__(kSumThreads) sum_partials(const SumTask<Scalar, Order> task) {
  const Shared<Complex<Scalar>> shared = shared_memory<Complex<Scalar>>();
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  Complex<Scalar> sum{0, 0};
  if (at < task.count) {
    const int64_t length = static_cast<int64_t>(task.tiles) * kTile, of_group = task.blocks * length;
    const int64_t group = at / of_group, block = at % of_group / length, k = at % length / task.tiles;
    const int64_t partial_length = length * task.pairs, row = task.blocks * partial_length;
    const Complex<Scalar>* from = task.partial + group * task.chunks * row + block * partial_length +
                                  k * task.pairs * task.tiles + at % task.tiles;
    for (int chunk = slice; chunk < task.chunks; chunk += kSlices) {
      for (int pair = 0; pair < task.pairs; ++pair) sum = sum + from[chunk * row + pair * task.tiles];
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || at >= task.count) return;
  for (int other = 1; other < kSlices; ++other) {
    const Complex<Scalar> of_slice = shared[other * kWarp + lane];
    sum = sum + of_slice;
  }
  task.total[task.order(at)] = sum;
}

template <class Scalar>
struct ParameterTask {
  DevicePlan<Scalar> plan;
  Layout layout;
  void* parameter;
  StorageType type;
  Complex<Scalar>* spectra;
  const int* poisoned;  // for each of `chunks` blocks of threads of a group
  int chunks;
  int rows, columns;  // of the grid, as the spectra are ordered
  bool transposed;    // the parameters are ordered (columns, rows)
  bool twisted;
  Scalar scale;

  // The parameter block whose spectrum this block of threads makes or reads.
  __device__ __forceinline__ int64_t block() const {
    const int blocks = rows * columns, group = blockIdx.x / blocks, within = blockIdx.x % blocks;
    const int row = within / columns, column = within % columns;
    return static_cast<int64_t>(group) * blocks + (transposed ? column * rows + row : within);
  }
};

// The spectra of parameters, divided by the length of the transform: one block of threads for each.
template <class Scalar>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) parameter_spectra(const ParameterTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const int length = plan.length;
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const int64_t parameter = task.block() * task.layout.count;
  for (int i = threadIdx.x; i < length; i += blockDim.x) {
    Scalar value = 0;
    for (const Segment& segment : task.layout.segments) {
      const int begin = static_cast<int>(segment.begin), end = static_cast<int>(segment.end);
      if (begin <= i && i < end) {
        const int at = static_cast<int>(segment.start) + segment.step * (i - begin);
        value = static_cast<Scalar>(segment.sign) * load_value<Scalar>(task.parameter, task.type, parameter + at);
      }
    }
    z[padded(i)] = Complex<Scalar>{value, 0};
  }
  __syncthreads();
  const auto enter = [&](int) { return entry_of<Scalar>(plan, task.twisted, false, 1, 0); };
  stages_in(plan, z, length, enter);
  Complex<Scalar>* spectrum = task.spectra + static_cast<int64_t>(blockIdx.x) * length;
  tiles_in(plan, z, length, enter, [&](Complex<Scalar>* u, int tile) {
    SURM_UNROLL
    for (int k = 0; k < kTile; ++k) u[k] = {u[k].re * task.scale, u[k].im * task.scale};
    write_tile(u, tile, tiles_of(length), spectrum);
  });
}

// The gradients of parameters from those of their spectra: the adjoint of the transform and of the layout.
template <class Scalar>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) parameter_gradients(const ParameterTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const int length = plan.length;
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const Complex<Scalar>* spectrum = task.spectra + static_cast<int64_t>(blockIdx.x) * length;
  tiles_out(z, length, [&](Complex<Scalar>* u, int tile) { read_tile(spectrum, tile, tiles_of(length), u); });
  stages_out(plan, z, length);

  const int* flags = task.poisoned + blockIdx.x / (task.rows * task.columns) * task.chunks;
  int poisoned = 0;
  for (int chunk = threadIdx.x % kWarp; chunk < task.chunks; chunk += kWarp) poisoned |= flags[chunk];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) poisoned |= __shfl_xor_sync(0xffffffffu, poisoned, offset);
  const auto column = [&](int i) {
    const Complex<Scalar> value = z[padded(i)];
    return task.twisted ? turned_back(value, plan.twist[i]).re : value.re;
  };
  const int64_t parameter = task.block() * task.layout.count;
  for (int i = threadIdx.x; i < task.layout.count; i += blockDim.x) {
    Scalar value = 0;
    for (const Segment& segment : task.layout.segments) {
      const int begin = static_cast<int>(segment.begin), end = static_cast<int>(segment.end);
      const int at = begin + segment.step * (i - static_cast<int>(segment.start));
      if (begin <= at && at < end) value += static_cast<Scalar>(segment.sign) * column(at);
    }
    store_value<Scalar>(task.parameter, task.type, parameter + i,
                        poisoned != 0 ? std::numeric_limits<Scalar>::quiet_NaN() : task.scale * value);
  }
}

}  // namespace surm::cuda
