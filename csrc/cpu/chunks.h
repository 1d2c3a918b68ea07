// Sums over tokens, in chunks whose number and order depend on the shape alone: the same for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// The chunks that `units` of work for so many tokens are summed in; `bytes` is what the sums of one take. Few tokens
// make smaller chunks, so that there are some for several threads.
inline int64_t chunks_of_sum(int64_t units, int64_t tokens, int64_t bytes) {
  constexpr int64_t kMostChunks = 128, kTokensInChunk = 64, kBytes = 4 << 20;
  constexpr int64_t kFewChunks = 4, kFewestTokens = 16;
  const int64_t affordable = std::max<int64_t>(4, kBytes / std::max<int64_t>(bytes, 1));
  const int64_t worth =
      std::max((tokens + kTokensInChunk - 1) / kTokensInChunk, std::min(kFewChunks, tokens / kFewestTokens));
  return std::max<int64_t>(1, std::min({units, kMostChunks, affordable, worth}));
}

// Calls add(to, from) for two chunks at a time, in a fixed tree that leaves the sum of all in chunk 0.
template <class Add>
SURM_INLINE void add_chunks(int64_t chunks, const Add& add) {
  for (int64_t step = 1; step < chunks; step *= 2) {
    for (int64_t chunk = 0; chunk + step < chunks; chunk += 2 * step) add(chunk, chunk + step);
  }
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
