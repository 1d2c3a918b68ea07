// Where the values of a transform of n = R · 256 on the matrix unit lie: in the registers of its warps, in shared
// memory and in the tables of tensor_tables.cu. A transform is an outer stage of radix R, then R transforms of 256 (the
// core), each a 16 × 16 matrix in the registers of one warp.
//
// Kernels are compiled for kRadix = 1, 2, 3 and 4, and for 8, 16 and 32, which serve every smaller R too, 32 even ones:
// rows and columns of their matrices are zero, so that places without a row hold zeros. Of a matrix that is a part of
// an N × N circulant they load and store what a token has.
//
// Rows and columns of the core's matrices are numbered with the two lowest bits exchanged. Then what a lane holds of a
// product (matrix_unit.cuh) are values that lie side by side where it stores them.
#pragma once

#include "butterflies.h"

namespace surm::cuda {

constexpr int kLanes = 32;
constexpr int kCore = 256;

SURM_INLINE constexpr int exchanged(int i) { return (i & ~3) | (i & 1) << 1 | (i >> 1 & 1); }

// Numbers g and t of a lane as PTX has them.
SURM_INLINE constexpr int row_of_lane(int lane) { return lane >> 2; }
SURM_INLINE constexpr int pair_of_lane(int lane) { return lane & 3; }

// ---- a 16 × 16 matrix in sums: value k of half h ----

// Of the core, column-major: the frequency going in, the position going out.
SURM_INLINE constexpr int core_value(int lane, int half, int k) {
  const int row = row_of_lane(lane) + 8 * (k >> 1), column = 8 * half + 2 * pair_of_lane(lane) + (k & 1);
  return exchanged(row) + 16 * exchanged(column);
}

// Tables have the values of a matrix in the order in which a warp reads them: four times two neighbours of each lane.
constexpr int kQuarters = 4, kPairsOfCore = kQuarters * kLanes;

// The core's value at a place, 0 … 255, in such a table.
SURM_INLINE constexpr int core_value_at(int place) {
  const int second = place & 1, lane = place / 2 % kLanes, quarter = place / 2 / kLanes;
  return core_value(lane, quarter / 2, quarter % 2 * 2 + second);
}

// ---- the outer stage ----

// Row r of R has frequencies r + R · f, f that of its core; those of a skew-circulant matrix are less by a half, as of
// rows times exp(iπ j/n).
template <int kRadix>
struct Outer {
  static constexpr bool kOnUnit = kRadix >= 8;                        // else by butterflies in registers, whole tokens
  static constexpr int kWarps = !kOnUnit ? 1 : kRadix == 32 ? 8 : 4;  // that share a complex row
  static constexpr int kRowsOfBlock = kOnUnit ? 1 : 4;                // complex rows
  static constexpr int kWarpsOfBlock = kWarps * kRowsOfBlock;
  static constexpr int kThreads = kWarpsOfBlock * kLanes;
  static constexpr int kPackets = !kOnUnit ? kRadix : kRadix == 8 ? 2 : 4;  // of 8 values of a token that a lane loads
  static constexpr int kSlots = !kOnUnit ? kRadix : kRadix == 8 ? 2 : 4;    // times 8 results of the stage in a lane
  static constexpr int kParts = kRadix == 32 ? 2 : 1;                       // of R, of which a matrix transforms one
  static constexpr int kPoints = kRadix / kParts;                           // that it has room for

  // The place of row r of R among kRadix; the others hold zeros.
  static SURM_INLINE constexpr int place_of_row(int radix, int row) {
    return kParts == 2 && row >= radix / 2 ? row - radix / 2 + kPoints : row;
  }

  // Where the first packet of a lane begins in its token, and how far behind it packet k does.
  static SURM_INLINE constexpr int first_packet(int warp, int lane) {
    if (!kOnUnit) return 8 * lane;
    const int row = 2 * pair_of_lane(lane), g = row_of_lane(lane);
    const int column = (kRadix == 32 ? 32 * warp + 256 * (g & 1) : 64 * warp + 32 * (g & 1)) + 8 * (g >> 1);
    return row * kParts * kCore + column;
  }
  static constexpr int behind_first(int k) { return (kOnUnit ? (k & 1) + 8 * (k >> 1) : k) * kParts * kCore; }

  // The place of a slot among kRadix rows of 256, and its first column.
  static SURM_INLINE constexpr int place(int lane, int slot) {
    if (!kOnUnit) return slot;
    const int row = row_of_lane(lane) + (kRadix == 8 ? 0 : 8 * (slot >> 1));
    return kRadix == 32 ? row + kPoints * (slot & 1) : row;
  }
  static SURM_INLINE constexpr int column(int warp, int lane, int slot) {
    if (!kOnUnit) return 8 * lane;
    return (kRadix == 32 ? 32 * warp : 64 * warp + 32 * (slot & 1)) + 8 * pair_of_lane(lane);
  }
};

// ---- tables, in units of 16 bytes ----

// Left factors, after each other for all lanes.
enum TensorMatrix {
  kCoreCos,  // 16 × 16 in float16, times kMatrixScale; symmetric, so right factors as well
  kCoreSin,
  kInCosHigh,  // 16 and 32: in bfloat16, split in two
  kInSinHigh,
  kInCosLow,
  kInSinLow,
  kInCosFloat16,  // the same in float16, times kMatrixScale
  kInSinFloat16,
  kOutCos,  // in float16, times kOutScale; 32: out to the first 256 values of 512, then to the others
  kOutSin,
  kOutCosOfSecond,
  kOutSinOfSecond,
  kTurns,  // 32: two factors of each lane, in float32; 1 to 4: of every row, the same for each lane
  kTensorMatrices = kTurns + 2,
  kInHigh = kInCosHigh,  // 8: real and imaginary parts in one matrix
  kInLow = kInSinHigh,
  kInFloat16 = kInCosFloat16,
  kOut = kOutCos,
};

// Make the entries of a transform in float16 exact to 2e-5 with 16 points, to 6e-5 with 32, else to 3e-4.
constexpr float kMatrixScale = 7620.0f / 4096, kMatrixScale32 = 4568.0f / 4096;

// What a token's values are multiplied by on the way out because the matrices were.
template <int kRadix>
constexpr float kOutScale = kRadix == 32  ? kMatrixScale32
                            : kRadix >= 8 ? kMatrixScale
                                          : 1.0f;

template <int kRadix>
struct TensorTables {
  static constexpr int kInner = 0;                              // w_256^(r c) of the core
  static constexpr int kIn = kInner + kPairsOfCore;             // of every warp and slot
  static constexpr int kOutward = kIn + kRadix * kPairsOfCore;  // of every row
  static constexpr int kMatrices = kOutward + kRadix * kPairsOfCore;
  static constexpr int kCount = kMatrices + kTensorMatrices * kLanes;
};

// Calls body(std::integral_constant<int, kRadix>) for the kernels of a length; false where there are none.
template <class Body>
bool with_outer_radix(int64_t length, const Body& body) {
  const int64_t radix = length / kCore;
  if (length <= 0 || radix * kCore != length) return false;
  if (radix == 1) {
    body(std::integral_constant<int, 1>{});
  } else if (radix == 2) {
    body(std::integral_constant<int, 2>{});
  } else if (radix == 3) {
    body(std::integral_constant<int, 3>{});
  } else if (radix == 4) {
    body(std::integral_constant<int, 4>{});
  } else if (radix <= 8) {
    body(std::integral_constant<int, 8>{});
  } else if (radix <= 16) {
    body(std::integral_constant<int, 16>{});
  } else if (radix <= 32 && radix % 2 == 0) {
    body(std::integral_constant<int, 32>{});
  } else {
    return false;
  }
  return true;
}

}  // namespace surm::cuda
