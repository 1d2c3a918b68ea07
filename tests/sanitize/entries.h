// The entries of a block by the index formulas of BlockKind (csrc/shapes.h).
#pragma once

#include <cstdint>

#include "shapes.h"

namespace surm::sanitize {

// Which value fills an entry, and with which sign.
struct Entry {
  int64_t value;
  double sign;
};

inline bool is_wrapped(BlockKind kind) { return kind == BlockKind::kCirculant || kind == BlockKind::kSkewCirculant; }

inline Entry entry_of(BlockKind kind, int64_t i, int64_t j, int64_t columns) {
  if (kind == BlockKind::kHankel) return {i + j, 1};
  if (kind == BlockKind::kToeplitz) return {i - j + columns - 1, 1};
  return {(i - j + columns) % columns, kind == BlockKind::kSkewCirculant && i < j ? -1.0 : 1.0};
}

}  // namespace surm::sanitize
