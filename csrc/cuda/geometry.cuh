// How tokens are cut for blocks of threads: sizes of the blocks, what a block has in shared memory, and which blocks
// share the sum over the tokens of a group.
#pragma once

#include <algorithm>

#include "spectral_product.cuh"

namespace surm::cuda {

// A block of threads takes so many tiles of a pair of tokens at least, several pairs if one has fewer …
constexpr int64_t kTilesWanted = 256;
// … as long as it has no more shared memory than this.
constexpr int64_t kSharedWanted = 64 << 10;
constexpr int64_t kFewestThreads = 64;
// Tiles of a thread, if there are enough threads. What it does once, such as finding scales, is worth more than one;
// but where sums fill the shared memory of a multiprocessor with few blocks, these take all the threads they can have.
constexpr int64_t kOneTile = 1, kTwoTiles = 2;
// Blocks of threads that a product is spread over and a sum over tokens shared by, when they have the most threads;
// more if they have fewer. Two for each multiprocessor of a large device; a fixed number, since it decides in which
// order tokens are added. The emulator has fewer, where few tokens are to be many for a block.
#ifndef SURM_BLOCKS_WANTED
#define SURM_BLOCKS_WANTED 264
#endif
constexpr int64_t kBlocksWanted = SURM_BLOCKS_WANTED;
constexpr int64_t kPartialBytes = int64_t{128} << 20;  // of all partial sums, at most, where they are many a chunk

inline int64_t power_of_two_from(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

template <class Scalar>
struct Geometry {
  int64_t length, tiles;
  int64_t pairs_of_group;
  int pairs;  // of a unit
  int threads;
  int64_t units;  // of a group

  // `blocks` rows of N for each pair in the transforms, `shared(pairs)` bytes for them and what goes with them.
  template <class SharedBytes>
  Geometry(int64_t tokens, int64_t plan_length, int64_t blocks, int64_t tiles_of_thread, const SharedBytes& shared)
      : length(plan_length), tiles(plan_length / kTile), pairs_of_group(divide_up(tokens, 2)), pairs(1) {
    const int64_t each = blocks * tiles;
    while (2 * pairs * each <= kTilesWanted && 2 * pairs <= power_of_two_from(pairs_of_group) &&
           shared(2 * pairs) <= kSharedWanted) {
      pairs *= 2;
    }
    const int64_t wanted = power_of_two_from(pairs * each) / tiles_of_thread;
    threads = static_cast<int>(std::min<int64_t>(kMostThreads<Scalar>, std::max(kFewestThreads, wanted)));
    units = divide_up(pairs_of_group, pairs);
  }

  int warps_log2() const {
    int log2 = 0;
    while (kWarp * pairs << (log2 + 1) <= threads) ++log2;
    return log2;
  }
};

// The blocks of threads that share the units of a group, each a chunk of them; `bytes` is what one keeps in the
// device's memory.
struct Chunks {
  int64_t chunks, units_of_chunk;

  template <class Scalar>
  Chunks(const Geometry<Scalar>& geometry, int64_t groups, int64_t bytes) {
    const int64_t most = std::min(kBlocksWanted * (kMostThreads<Scalar> / geometry.threads),
                                  std::max<int64_t>(1, kPartialBytes / std::max<int64_t>(1, bytes)));
    chunks = std::max<int64_t>(1, std::min(geometry.units, divide_up(most, std::max<int64_t>(1, groups))));
    units_of_chunk = std::max<int64_t>(1, divide_up(geometry.units, chunks));
    chunks = std::max<int64_t>(1, divide_up(geometry.units, units_of_chunk));
  }
};

// The units of a group as `blocks` blocks of threads take them.
template <class Scalar>
Units units_of(int64_t tokens, const Geometry<Scalar>& geometry, int64_t blocks, int64_t units_of_block) {
  return {static_cast<int>(tokens), static_cast<int>(geometry.units),
          Divisor(blocks),          static_cast<int>(units_of_block),
          geometry.pairs,           geometry.warps_log2()};
}

template <class Scalar>
int64_t scale_bytes(int64_t pairs) {
  return ScaleMemory<Scalar>::bytes(kMostThreads<Scalar>, static_cast<int>(pairs));
}

template <class Scalar>
int64_t row_bytes(int64_t rows, int64_t length) {
  return padded_count(rows * length) * static_cast<int64_t>(sizeof(Complex<Scalar>));
}

}  // namespace surm::cuda
