// Products with a grid of circulant blocks given by their spectra, as they are told of their sizes.
#pragma once

#include <cstdint>

namespace surm {

struct SpectralShape {
  int64_t groups;             // independent problems
  int64_t tokens;             // rows of x in each
  int64_t rows, columns;      // blocks of an output row, blocks of an input row
  int64_t out_size, in_size;  // values of an output block, of an input block; the rest of a transform is padding
  bool twisted;               // multiply by exp(iπ j/n) on the way in and its conjugate on the way out
  bool reflected;             // the product is with rows in reversed order, x[-j mod N]

  int64_t blocks_of_group() const { return rows * columns; }
  int64_t all_blocks() const { return groups * blocks_of_group(); }
  int64_t in_width() const { return columns * in_size; }
  int64_t out_width() const { return rows * out_size; }
};

}  // namespace surm
