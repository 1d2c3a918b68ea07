// Matrices whose rows are windows of a vector: row i of an m × n block is n consecutive values of a vector of the
// block's m + n - 1 diagonals, one step earlier (or, rising, later) in every row. Laying them out, adding them to
// another matrix, and the adjoint.
#pragma once

#include <algorithm>

#include "masks.h"
#include "scratch.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

struct Windows {
  int64_t row_blocks;     // of the whole matrix, over all groups
  int64_t column_blocks;  // in a row of blocks
  int64_t rows, columns;  // of a block
  bool rising;            // row i begins at value i; else the last row begins at value 0

  int64_t blocks() const { return row_blocks * column_blocks; }
  int64_t diagonals() const { return rows + columns - 1; }
  int64_t width() const { return column_blocks * columns; }
  int64_t begin_of(int64_t row) const { return rising ? row : rows - 1 - row; }
  // Where the first window of a row of the whole matrix begins among all diagonals; the next ones follow diagonals()
  // apart.
  int64_t first_window(int64_t row) const { return row / rows * column_blocks * diagonals() + begin_of(row % rows); }
};

constexpr int64_t kValuesWorthAThread = 32 * 1024;

inline int64_t windows_grain(int64_t values) {
  return std::max<int64_t>(1, kValuesWorthAThread / std::max<int64_t>(values, 1));
}

// w (row_blocks · rows, column_blocks · columns) from the diagonals of every block, (blocks, diagonals).
template <class Storage>
void lay_out(const Windows& windows, const Storage* diagonals, Storage* w, const ParallelFor& parallel) {
  const int64_t width = windows.width(), length = windows.diagonals();
  parallel(windows.row_blocks * windows.rows, windows_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Storage* from = diagonals + windows.first_window(row);
      for (int64_t q = 0; q < windows.column_blocks; ++q) {
        std::memcpy(w + row * width + q * windows.columns, from + q * length, windows.columns * sizeof(Storage));
      }
    }
  });
}

// scale · values in the type that a merge computes in, rounded there once more before anything is added, as on CUDA.
template <class Scalar, class Storage>
Buffer<Scalar> scaled_values(const Storage* values, int64_t count, double scale, const ParallelFor& parallel) {
  const auto factor = static_cast<Scalar>(scale);
  Buffer<Scalar> scaled(count);
  parallel(count, kValuesWorthAThread, [&](int64_t begin, int64_t end) {
    for_vectors<ComputeType<Storage>>(end - begin, [&](int64_t j, int64_t n) {
      const auto value = load_first(values + begin + j, n);
      for (int64_t lane = 0; lane < n; ++lane) scaled[begin + j + lane] = factor * static_cast<Scalar>(value[lane]);
    });
  });
  return scaled;
}

// merge.out = merge.weight + the matrix that lay_out() makes. Scalar is double if merge.in_float64(), else float.
template <class Scalar>
void add_windows(const Windows& windows, const Scalar* diagonals, const Merge& merge,
                 const ParallelFor& parallel);  // in windows_kernels.cpp, compiled once for all that use it

// sums[0 … count) += from[0 … count)
template <class Storage>
void add_values(const Storage* from, int64_t count, ComputeType<Storage>* sums) {
  using Scalar = ComputeType<Storage>;
  for_vectors<Scalar>(count, [&](int64_t j, int64_t n) {
    store_first(sums + j, load_first<Scalar>(sums + j, n) + load_first(from + j, n), n);
  });
}

// The adjoint: take(block, sums) gets the sum of w along every diagonal of a block. The rows of a block are summed in a
// fixed number of chunks, then chunk by chunk: the same for any thread count.
template <class Storage, class Take>
void sum_windows(const Windows& windows, const Storage* w, const ParallelFor& parallel, const Take& take) {
  using Scalar = ComputeType<Storage>;
  const int64_t rows = windows.rows, columns = windows.columns, length = windows.diagonals(), width = windows.width();
  const int64_t chunks = std::min<int64_t>(rows, 16);
  const Buffer<Scalar> sums(windows.blocks() * chunks * length);
  parallel(windows.blocks() * chunks, windows_grain(rows * columns / chunks), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / chunks, chunk = item % chunks;
      const int64_t first_row = block / windows.column_blocks * rows, q = block % windows.column_blocks;
      Scalar* sum = sums.data() + item * length;
      std::fill(sum, sum + length, Scalar{0});
      for (int64_t i = rows * chunk / chunks; i < rows * (chunk + 1) / chunks; ++i) {
        add_values(w + (first_row + i) * width + q * columns, columns, sum + windows.begin_of(i));
      }
    }
  });
  parallel(windows.blocks(), windows_grain(chunks * length), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      Scalar* total = sums.data() + block * chunks * length;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) add_values(total + chunk * length, length, total);
      take(block, static_cast<const Scalar*>(total));
    }
  });
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
