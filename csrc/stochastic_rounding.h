// Stochastic rounding of float32 to 16 bits, bits in and bits out, on a lane or a vector of lanes: one source for the
// CPU and CUDA, so that both round alike. A number between two neighbours of the type becomes one of them, the farther
// one with the probability that makes the mean the number itself (Croci et al., Stochastic rounding, 2022).
//
// The random numbers are a function of a key and of the place in the matrix. A row has a key of its own, a word of
// SplitMix64 (Steele, Lea and Flood, 2014), whose halves enter a hash of the column (lowbias32 of Wellons' hash
// prospector) at its start and in its middle. surm_kernels/reference/ops/stochastic.py has the same.
#pragma once

#include <cstdint>

#include "butterflies.h"

namespace surm {

// The key of a row: word number `row` of SplitMix64 from `key`.
SURM_INLINE uint64_t row_key(uint64_t key, uint64_t row) {
  uint64_t word = key + (row + 1) * 0x9e3779b97f4a7c15u;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

// 32 random bits for a column, or for each of a vector of columns.
template <class Word>
SURM_INLINE Word random_word(uint64_t row_key, Word column) {
  Word word = column + static_cast<uint32_t>(row_key);
  word = (word ^ (word >> 16)) * 0x7feb352du;
  word = (word ^ (word >> 15) ^ static_cast<uint32_t>(row_key >> 32)) * 0x846ca68bu;
  return word ^ (word >> 16);
}

// A key may follow from a seed and from numbers: from the sum of the hashes of all of them, each at its place.
SURM_INLINE uint64_t hash_of_number(int64_t bits, uint64_t place) {
  return static_cast<uint64_t>(bits) * (row_key(0, place) | 1);  // an odd factor: no change of one alone goes unseen
}
SURM_INLINE uint64_t key_of(uint64_t seed, uint64_t hash) { return row_key(seed, row_key(hash, 0)); }

// Both take the bits of float32 and a random word and return the bits of the type. What is cut off, as an integer, plus
// as many random bits carries with just the right probability. Beyond the largest finite number, which has no neighbour
// there, half a spacing takes the place of the random bits: what rounding to nearest makes infinite becomes infinite.

template <class Word>
SURM_INLINE Word bfloat16_bits(Word bits, Word random) {
  const Word magnitude = bits & 0x7fffffffu, half = Word{} + 0x8000u;
  const Word added = magnitude > 0x7f7f0000u ? half : random >> 16;
  return magnitude > 0x7f800000u ? Word{} + 0x7fc0u : (bits + added) >> 16;
}

template <class Word>
SURM_INLINE Word float16_bits(Word bits, Word random) {
  const Word magnitude = bits & 0x7fffffffu, half = Word{} + 0x1000u, infinity = Word{} + 0x47800000u;
  const Word added = magnitude > 0x477fe000u ? half : random >> 19;
  const Word normal = ((magnitude > infinity ? infinity : magnitude) + added - 0x38000000u) >> 13;
  // Below 2^-14 the spacing stays 2^-24. In units of 2^-45 the number is below 2^31, and 21 bits are cut off.
  const Word significand = (magnitude & 0x7fffffu) | 0x800000u, distance = 112u - (magnitude >> 23);
  const Word units = (significand << 7) >> (distance > 31u ? Word{} + 31u : distance);
  const Word subnormal = (units + (random >> 11)) >> 21;
  const Word rounded = magnitude < 0x38800000u ? subnormal : normal;
  return magnitude > 0x7f800000u ? Word{} + 0x7e00u : rounded | ((bits >> 16) & 0x8000u);
}

}  // namespace surm
