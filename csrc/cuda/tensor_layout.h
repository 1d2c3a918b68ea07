// Where the values of a transform of n = R · 256 on the matrix unit lie: in the registers of its warps, in shared
// memory and in the tables of tensor_tables.cu. A transform is an outer stage of radix R, then R transforms of 256 (the
// core), each a 16 × 16 matrix in the registers of one warp.
//
// Rows and columns of all matrices are numbered with the two lowest bits exchanged. Then what a lane holds of a product
// (matrix_unit.cuh) are values that lie side by side where it stores them.
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

// The frequency of a row of R: value f of its core is that plus R · f of the whole.
SURM_INLINE constexpr int frequency_of_row(int radix, int row) { return radix >= 8 ? exchanged(row) : row; }

template <int kRadix>
struct Outer {
  static_assert(kRadix == 1 || kRadix == 3 || kRadix == 4 || kRadix == 8 || kRadix == 16 || kRadix == 32, "");
  static constexpr int kLength = kRadix * kCore;
  static constexpr bool kOnUnit = kRadix >= 8;                        // else by butterflies in registers
  static constexpr int kWarps = !kOnUnit ? 1 : kRadix == 32 ? 8 : 4;  // that share a complex row
  static constexpr int kCores = kRadix / kWarps;                      // of a warp
  static constexpr int kRowsOfBlock = kOnUnit ? 1 : 4;                // complex rows
  static constexpr int kWarpsOfBlock = kWarps * kRowsOfBlock;
  static constexpr int kThreads = kWarpsOfBlock * kLanes;
  static constexpr int kPackets = !kOnUnit ? kRadix : kRadix == 8 ? 2 : 4;  // of 8 values of a token that a lane loads
  static constexpr int kSlots = !kOnUnit ? kRadix : kRadix == 8 ? 2 : 4;    // times 8 results of the stage in a lane

  // Where packet k of a lane begins in its token.
  static SURM_INLINE constexpr int packet(int warp, int lane, int k) {
    if (!kOnUnit) return kCore * k + 8 * lane;
    const int row = exchanged(2 * pair_of_lane(lane)) + 2 * (k & 1) + 8 * (k >> 1), g = row_of_lane(lane);
    const int column = (kRadix == 32 ? 32 * warp + 256 * (g & 1) : 64 * warp + 32 * (g & 1)) + 8 * (g >> 1);
    return row * (kRadix == 32 ? 2 * kCore : kCore) + column;
  }

  // The row of a slot and its first column, of R rows of 256.
  static SURM_INLINE constexpr int row(int lane, int slot) {
    if (!kOnUnit) return slot;
    const int row = row_of_lane(lane) + (kRadix == 8 ? 0 : 8 * (slot >> 1));
    return kRadix == 32 ? row + 16 * (slot & 1) : row;
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
  kInCosHigh,  // R = 16 and 32: in bfloat16, split in two
  kInSinHigh,
  kInCosLow,
  kInSinLow,
  kOutCos,  // R = 32: out to the first 256 values of 512, then to the others; in float16, times kMatrixScale32
  kOutSin,
  kOutCosOfSecond,
  kOutSinOfSecond,
  kInTurns,  // R = 32: two factors of each lane, in float32
  kTensorMatrices,
  kInHigh = kInCosHigh,  // R = 8: real and imaginary parts in one matrix; going out times kMatrixScale
  kInLow = kInSinHigh,
  kOut = kOutCos,
};

// Make the entries of a transform in float16 exact to 2e-5 with 16 points, to 6e-5 with 32.
constexpr float kMatrixScale = 7620.0f / 4096, kMatrixScale32 = 4568.0f / 4096;

template <int kRadix>
struct TensorTables {
  static constexpr int kInner = 0;                                   // w_256^(r c) of the core
  static constexpr int kIn = kInner + kPairsOfCore;                  // of every warp and slot
  static constexpr int kOutward = kIn + Outer<kRadix>::kLength / 2;  // of every row
  static constexpr int kMatrices = kOutward + kRadix * kPairsOfCore;
  static constexpr int kCount = kMatrices + kTensorMatrices * kLanes;
};

// Calls body(std::integral_constant<int, R>) for the R of a length; false where there is none.
template <class Body>
bool with_outer_radix(int64_t length, const Body& body) {
#define SURM_OUTER_RADIX(radix)                 \
  if (length == (radix) * kCore) {              \
    body(std::integral_constant<int, radix>{}); \
    return true;                                \
  }
  SURM_OUTER_RADIX(1)
  SURM_OUTER_RADIX(3)
  SURM_OUTER_RADIX(4)
  SURM_OUTER_RADIX(8)
  SURM_OUTER_RADIX(16)
  SURM_OUTER_RADIX(32)
#undef SURM_OUTER_RADIX
  return false;
}

}  // namespace surm::cuda
