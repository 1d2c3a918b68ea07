// The stages of a walk: butterflies between vectors, with the rows read by the first and written by the last.
#pragma once

#include "prefetch.h"
#include "transform.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

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
