// Asking for memory ahead of its use, in small steps.
#pragma once

#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Memory that will be needed soon, asked for a few lines at every step of a walk: L1 has buffers for few lines under
// way, and a longer burst would stall.
class Prefetch {
 public:
  void add(const void* from, int64_t bytes) {
    streams_[count_++] = {static_cast<const char*>(from), static_cast<const char*>(from) + bytes};
  }

  // The streams take turns.
  SURM_INLINE void step() {
    Stream& stream = streams_[turn_];
    turn_ = turn_ + 1 < count_ ? turn_ + 1 : 0;
    if (stream.at >= stream.end) return;
    SURM_UNROLL
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(stream.at + 64 * line, 0, 2);
    stream.at += 64 * kLines;
  }

 private:
  static constexpr int kLines = 8;
  struct Stream {
    const char *at = nullptr, *end = nullptr;
  };
  Stream streams_[3];
  int count_ = 0, turn_ = 0;
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
