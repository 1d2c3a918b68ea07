// The stages of a walk: butterflies between vectors, with the rows read by the first and written by the last.
#pragma once

#include "transform.h"

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

// Two real rows that the first stage reads itself, without a pass of its own: z = in[0] row[0] + i in[1] row[1], and
// zeros beyond `size`. No rows: z holds the packed row already.
template <class Storage>
struct RowSource {
  const Storage* row[2] = {nullptr, nullptr};
  ComputeType<Storage> in[2] = {0, 0};
  int64_t size = 0;
};

// Two real rows that the last stage writes itself: row = base + factor · part of z, the first `size` values; base may
// be null for both. No rows: the packed row stays in z.
template <class Storage>
struct RowSink {
  Storage* row[2] = {nullptr, nullptr};
  const Storage* base[2] = {nullptr, nullptr};
  ComputeType<Storage> factor[2] = {0, 0};
  int64_t size = 0;
};

// One stage of `blocks` blocks of z on the way in; the first takes the rows that `sources` (may be null) names. Like
// walk_stage_out it is compiled once for all walks (stages_kernels.cpp).
template <class Storage>
void walk_stage_in(const Transform<ComputeType<Storage>>& transform, size_t stage,
                   Complex<Vector<ComputeType<Storage>>>* z, int64_t offset, int64_t blocks,
                   const RowSource<Storage>* sources, Prefetch& prefetch);

// One stage on the way out; the last (stage 0) writes the rows that `sinks` (may be null) names.
template <class Storage>
void walk_stage_out(const Transform<ComputeType<Storage>>& transform, size_t stage,
                    Complex<Vector<ComputeType<Storage>>>* z, int64_t offset, int64_t blocks,
                    const RowSink<Storage>* sinks, Prefetch& prefetch);

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
