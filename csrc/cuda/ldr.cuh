// Products of low displacement rank, W = Σ_l Z_1(left_l) Z_-1(right_l), and their gradients: the kernels.
//
// As on the CPU (cpu/ldr_kernels.cpp) a pair of tokens goes through 2r + 2 transforms: one of x into the domain where
// Z_-1 is diagonal, for each l one back and one into the domain of Z_1, and one back of the sum. A block of threads has
// one row of shared memory for all of them, and runs a loop of steps: stages in, the tile in, what the step makes of
// the spectrum and the spectrum of the next step, the tile out, stages out. Between the stages out of a step and the
// stages in of the next, rows change their domain.
//
// Spectra that later steps need are kept in shared memory if they fit, else in the device's; a tile of them is touched
// by one thread alone, so they need no barrier.
#pragma once

#include "spectral_product.cuh"

namespace surm::cuda {

template <class Scalar>
struct LdrTask {
  DevicePlan<Scalar> plan;
  Units units;
  Divisor by_tiles;
  int rank;
  bool twisted;                        // else the size is embedded
  bool reflected;                      // rows of x are reversed
  const Complex<Scalar>*left, *right;  // spectra, (groups, rank, length)
  Complex<Scalar>* kept;               // for each block of threads its kept spectra, where they do not fit
};

template <class Scalar>
struct LdrProductTask : LdrTask<Scalar> {
  Rows x;
  Store<Scalar> to;
  bool transposed;
};

template <class Scalar>
struct LdrBackwardTask : LdrTask<Scalar> {
  Rows g, x;
  Store<Scalar> to;                        // of x's gradient; null data: not wanted
  Complex<Scalar>*left_sums, *right_sums;  // partial sums, (blocks of threads, rank, length · pairs), or null
  int* poisoned;                           // for each block of threads: whether a token was not finite
};

// Bytes of the row that a block of threads works on, or of a spectrum that it keeps.
template <class Scalar>
__host__ __device__ inline int64_t ldr_row_bytes(int64_t count) {
  return padded_count(count) * static_cast<int64_t>(sizeof(Complex<Scalar>));
}

// Values that a spectrum has room for whose tiles lie warp by warp.
__host__ __device__ inline int64_t warped_count(int64_t count) {
  constexpr int64_t kWarpOfTiles = kWarp * kTile;
  return (count + kWarpOfTiles - 1) / kWarpOfTiles * kWarpOfTiles;
}

// Spectrum `index` of the `all` that a block of threads keeps. In the device's memory its tiles lie side by side: all
// of them or, if kWarped, those of a warp, whose values are at distances that the compiler knows. That keeps the
// product from spilling (24 bytes on sm_90 by nvcc 12.4), but would make the gradients spill (8 bytes on sm_90 by
// nvcc 13.0).
template <class Scalar, bool kNear, bool kWarped>
struct KeptSpectrum {
  Shared<Complex<Scalar>> near;
  Complex<Scalar>* far;
  int tiles;

  __device__ __forceinline__ KeptSpectrum(Complex<Scalar>* kept, int index, int all, int count)
      : near(shared_memory<Complex<Scalar>>(kNear ? (1 + index) * ldr_row_bytes<Scalar>(count) : 0)),
        far(kNear ? nullptr
                  : kept + (static_cast<int64_t>(blockIdx.x) * all + index) * (kWarped ? warped_count(count) : count)),
        tiles(tiles_of(count)) {}

  __device__ __forceinline__ Complex<Scalar> read(int tile, int k) const {
    if constexpr (kNear) {
      return near[tile * (kTile + 1) + k];
    } else {
      return far[place(tile) + k * (kWarped ? kWarp : tiles)];
    }
  }
  __device__ __forceinline__ void write(int tile, int k, const Complex<Scalar>& value) const {
    if constexpr (kNear) {
      near[tile * (kTile + 1) + k] = value;
    } else {
      far[place(tile) + k * (kWarped ? kWarp : tiles)] = value;
    }
  }

 private:
  __device__ static __forceinline__ int place(int tile) {
    return kWarped ? (tile >> kWarpLog2) * (kWarp * kTile) + (tile & (kWarp - 1)) : tile;
  }
};

// The domains that rows enter: in that of Z_-1 they are twisted, unless the size is embedded.
enum class Turn { kNone, kTwist, kUntwist };

// What enters of a packed row: each of its two rows times its factor, in the domain of the next transform.
template <class Scalar>
struct DomainEntry {
  Scalar first, second;
  const Complex<Scalar>* twist;  // null: none
  bool back;                     // times its conjugate
  int size;                      // from here on zeros enter

  __device__ __forceinline__ DomainEntry(const LdrTask<Scalar>& task, Turn turn, Scalar first, Scalar second)
      : first(first),
        second(second),
        twist(task.twisted && turn != Turn::kNone ? task.plan.twist : nullptr),
        back(turn == Turn::kUntwist),
        size(task.plan.size) {}

  __device__ __forceinline__ Complex<Scalar> operator()(const Complex<Scalar>& value, int position) const {
    if (position >= size) return {0, 0};
    const Complex<Scalar> row = scaled(value, first, second);
    return twist != nullptr ? turned(row, conjugated(twist[position], back)) : row;
  }
};

template <class Scalar, bool kNear>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) ldr_product(const LdrProductTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const int rank = task.rank, pairs = task.units.pairs, length = plan.length, count = pairs * length;
  const int tiles = tiles_of(length);
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  const KeptSpectrum<Scalar, kNear, true> x_hat(task.kept, 0, 2, count), sum(task.kept, 1, 2, count);
  const ScaleMemory<Scalar> memory((kNear ? 3 : 1) * ldr_row_bytes<Scalar>(count), pairs);
  // W is a sum of Z_1(left) Z_-1(right); its transpose takes the conjugates of the spectra in the other order.
  const bool transposed = task.transposed, reversed_in = task.reflected && !transposed;
  const Turn turn_first = transposed ? Turn::kNone : Turn::kTwist;
  const Turn turn_then = transposed ? Turn::kTwist : Turn::kUntwist;
  const Complex<Scalar>* before = transposed ? task.left : task.right;
  const Complex<Scalar>* after = transposed ? task.right : task.left;

  for (int unit = task.units.first(); unit < task.units.last(); ++unit) {
    const PairRange range = task.units.range(unit);
    load_rows(task.x, range, length, z, memory);
    for (int step = 0; step <= rank; ++step) {
      const auto enter = [&](int row) {
        RowScale<Scalar> first{1, 1}, second{1, 1};
        if (step == 0) {
          first = memory.scales[2 * row];
          second = memory.scales[2 * row + 1];
          if (reversed_in) second.in = -second.in;
        }
        return DomainEntry<Scalar>(task, step == 0 ? turn_first : turn_then, first.in, second.in);
      };
      stages_in(plan, z, count, enter);
      tiles_through(plan, z, count, enter, [&](Complex<Scalar>* u, int tile) {
        const int within = tile - task.by_tiles.quotient(tile) * tiles;
        const auto factor = [&](const Complex<Scalar>* spectra, int l, int k) {
          const int64_t spectrum = (static_cast<int64_t>(task.units.group()) * rank + l) * length;
          return conjugated(spectra[spectrum + within + k * tiles], transposed);
        };
        if (step == 0) {
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) {
            x_hat.write(tile, k, conjugated(u[k], reversed_in));
            u[k] = {0, 0};
          }
        } else {
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) {
            u[k] = turned(u[k], factor(after, step - 1, k));
            if (step > 1) u[k] = u[k] + sum.read(tile, k);
          }
        }
        // u is the sum up to here; it is the result, or waits while the next product is made.
        if (step == rank) {
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) u[k] = conjugated(u[k], task.to.conjugate);
        } else {
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) {
            sum.write(tile, k, u[k]);
            u[k] = turned(x_hat.read(tile, k), factor(before, step, k));
          }
        }
      });
      stages_out(plan, z, count);
    }
    store_rows(task.to, range, 0, length, z, memory);
  }
}

// All gradients of a unit: steps 0 and 1 are the transforms of g and x; then `lefts` steps each make one Z_-1(right_l)
// x for the gradient of left_l, and `rights` steps one Z_1(left_l)ᵀ g for that of right_l and for that of x.
template <class Scalar, bool kNear>
__global__ void __launch_bounds__(kMostThreads<Scalar>, 1) ldr_backward(const LdrBackwardTask<Scalar> task) {
  const DevicePlan<Scalar>& plan = task.plan;
  const int rank = task.rank, pairs = task.units.pairs, length = plan.length, count = pairs * length;
  const int tiles = tiles_of(length), all_tiles = tiles_of(count);
  const int64_t scales = (kNear ? 4 : 1) * ldr_row_bytes<Scalar>(count);
  const Shared<Complex<Scalar>> z = shared_memory<Complex<Scalar>>();
  using Kept = KeptSpectrum<Scalar, kNear, false>;
  const Kept g_hat(task.kept, 0, 3, count), x_hat(task.kept, 1, 3, count), sum(task.kept, 2, 3, count);
  const ScaleMemory<Scalar> of_g(scales, pairs);
  const ScaleMemory<Scalar> of_x(scales + ScaleMemory<Scalar>::bytes(blockDim.x, pairs), pairs);
  const bool need_x = task.to.rows.data != nullptr, need_right = task.right_sums != nullptr;
  const int first_left = 2, first_right = first_left + (task.left_sums != nullptr ? rank : 0);
  const int end = first_right + (need_x || need_right ? rank : 0);

  bool poisoned = false;
  for (int unit = task.units.first(); unit < task.units.last(); ++unit) {
    const PairRange range = task.units.range(unit);
    const bool first_unit = unit == task.units.first();
    for (int step = 0; step < end; ++step) {
      if (step == 0) load_rows(task.g, range, length, z, of_g);
      if (step == 1) {
        load_rows(task.x, range, length, z, of_x);
        if (threadIdx.x == 0) poisoned = poisoned || has_poison(of_g, pairs) || has_poison(of_x, pairs);
      }
      const Turn turn = step == 0 ? Turn::kNone : step > 1 && step < first_right ? Turn::kUntwist : Turn::kTwist;
      const auto enter = [&](int row) {
        Scalar first = 1, second = 1;
        if (step < first_left) {
          const RowScale<Scalar> g_first = of_g.scales[2 * row], g_second = of_g.scales[2 * row + 1];
          first = g_first.in;
          second = g_second.in;
          if (step == 1) {
            first = partner<Scalar>(g_first, of_x.scales[2 * row]);
            second = partner<Scalar>(g_second, of_x.scales[2 * row + 1]);
            if (task.reflected) second = -second;
          }
        }
        return DomainEntry<Scalar>(task, turn, first, second);
      };
      // Steps on either side are alike: `other` is what the product of this step meets, `sums` where that is added.
      const bool on_right = step >= first_right, next_on_right = step + 1 >= first_right, last = step + 1 == end;
      const int l = step - (on_right ? first_right : first_left);
      const int next_l = step + 1 - (next_on_right ? first_right : first_left);
      stages_in(plan, z, count, enter);
      tiles_through(plan, z, count, enter, [&](Complex<Scalar>* u, int tile) {
        const int within = tile - task.by_tiles.quotient(tile) * tiles;
        if (step < first_left) {
          const Kept kept = step == 0 ? g_hat : x_hat;
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) {
            kept.write(tile, k, conjugated(u[k], step == 1 && task.reflected));
            u[k] = {0, 0};
          }
        } else {
          const Kept other = on_right ? x_hat : g_hat;
          Complex<Scalar>* sums = on_right ? task.right_sums : task.left_sums;
          if (sums != nullptr) {
            sums += (int64_t{blockIdx.x} * rank + l) * count + tile;
            SURM_UNROLL
            for (int k = 0; k < kTile; ++k) {
              const Complex<Scalar> value = conjugated(turned_back(u[k], other.read(tile, k)), !on_right);
              sums[k * all_tiles] = first_unit ? value : sums[k * all_tiles] + value;
            }
          }
          if (on_right && need_x) {
            const Complex<Scalar>* factor =
                task.right + (static_cast<int64_t>(task.units.group()) * rank + l) * length + within;
            SURM_UNROLL
            for (int k = 0; k < kTile; ++k) {
              u[k] = turned_back(u[k], factor[k * tiles]);
              if (l > 0) u[k] = u[k] + sum.read(tile, k);
              if (!last) sum.write(tile, k, u[k]);
            }
          }
        }
        if (last) {
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) u[k] = conjugated(u[k], task.to.conjugate);
        } else if (step > 0) {
          const Kept from = next_on_right ? g_hat : x_hat;
          const Complex<Scalar>* factor = (next_on_right ? task.left : task.right) +
                                          (static_cast<int64_t>(task.units.group()) * rank + next_l) * length + within;
          SURM_UNROLL
          for (int k = 0; k < kTile; ++k) {
            u[k] = turned(from.read(tile, k), conjugated(factor[k * tiles], next_on_right));
          }
        }
      });
      if (step > 0 && (step + 1 < end || need_x)) stages_out(plan, z, count);
    }
    if (need_x) store_rows(task.to, range, 0, length, z, of_g);
  }
  if (threadIdx.x == 0) task.poisoned[blockIdx.x] = poisoned ? 1 : 0;
}

}  // namespace surm::cuda
