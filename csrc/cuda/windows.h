// Matrices of blocks whose entries repeat along diagonals: laying them out, adding them to another matrix, and the
// adjoint, on CUDA. No torch inside; every function returns a cudaError_t.
#pragma once

#include <cstdint>

#include "butterflies.h"
#include "shapes.h"

namespace surm::cuda {

// A matrix of row_blocks × column_blocks blocks of rows × columns, each of `count` values: entry (i, j) is value
// i - j + offset, i + j if rising; plus the number of rows, and times the sign `wrap`, where that is negative.
struct Windows {
  int64_t row_blocks;     // of the whole matrix, over all groups
  int64_t column_blocks;  // in a row of blocks
  int64_t rows, columns;  // of a block
  int64_t count;
  int offset;
  bool rising;
  int wrap;  // 0: no entry wraps around

  SURM_INLINE int64_t height() const { return row_blocks * rows; }
  SURM_INLINE int64_t width() const { return column_blocks * columns; }
};

// w (row_blocks · rows, column_blocks · columns) from the values of every block (blocks, count), to the bit.
int lay_out(StorageType type, const Windows& windows, const void* values, void* w, void* stream);

// merge.out = merge.weight + scale · the matrix that lay_out() makes, rounded once; `type` is that of the values.
int add_windows(StorageType type, const Windows& windows, const void* values, double scale, const Merge& merge,
                void* stream);

// The adjoint: values (blocks, count) are the sums of the entries of w that lay_out() makes of each, with its
// sign; always in the same order.
int sum_windows(StorageType type, const Windows& windows, const void* w, void* values, void* stream);

}  // namespace surm::cuda
