// A plan with its factors laid out for the lanes, and the depth-first walk over its stages.
//
// A packed row is x1 + i·x2 for two real rows, stored as length/L complex vectors, L consecutive elements in the lanes
// (twiddle factors are vectors, and a row of 4096 floats lives in 32 KiB of L1). After the stages (stages.h) every
// vector holds an independent transform of length L, and a few of them form a tile that is finished in registers
// (tiles.h): the spectrum exists tile by tile. Work on the spectrum happens right there, before the way back (works.h).
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../plan/plan.h"
#include "scratch.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

// Vectors whose lanes are transformed together, in registers: one per 128-bit block, or one per lane of a block.
template <class Scalar>
constexpr int kTile = kBlocks<Scalar> > kBlockLanes<Scalar> ? kBlocks<Scalar> : kBlockLanes<Scalar>;

// Up to this many vectors, what a walk costs beside its arithmetic is worth sharing among more rows.
constexpr int64_t kVectorsWorthAWalk = 32;

// A plan with its factors laid out for this instruction set.
template <class Scalar>
class Transform {
 public:
  static constexpr int L = kLanes<Scalar>;
  using V = Vector<Scalar>;
  using C = Complex<V>;

  explicit Transform(Plan plan) : plan_(std::move(plan)) {
    const auto factors = twiddle_factors<Scalar>(plan_, L);
    twiddles_ = Buffer<Scalar>(factors.size());
    if (!factors.empty()) std::memcpy(twiddles_.data(), factors.data(), factors.size() * sizeof(Scalar));
    size_t at = 0;
    for (const Stage& stage : plan_.stages) {
      starts_.push_back(at);
      at += 2 * (stage.radix - 1) * stage.stride;
      turns_.push_back(has_butterfly(stage.radix) ? std::vector<Scalar>{} : odd_butterfly_turns<Scalar>(stage.radix));
    }
    make_twist();
  }

  const Plan& plan() const { return plan_; }
  int64_t vectors() const { return plan_.length / L; }  // of a packed row
  // The fewest pairs to transform together: a tile wants kTile vectors, and several short rows fill it. Rows that may
  // be walked in larger numbers always do, so that the spectrum of more pairs is that of these, repeated.
  int pairs_to_fill_tiles() const {
    int pairs = 1;
    while (pairs < kTile<Scalar> && vectors() < kVectorsWorthAWalk && vectors() * pairs % kTile<Scalar> != 0)
      pairs *= 2;
    return pairs;
  }
  int64_t spectrum_vectors(int pairs) const { return count_tiles(0, pairs) * kTile<Scalar>; }
  const V* twist() const { return reinterpret_cast<const V*>(twist_.data()); }  // exp(iπ j/n), re and im

  const V* twiddles(size_t stage) const { return reinterpret_cast<const V*>(twiddles_.data() + starts_[stage]); }
  const Scalar* generic_turns(size_t stage) const { return turns_[stage].data(); }

  // A block above this size is split depth first, so that its parts stay in L1.
  static constexpr int64_t kCacheVectors = 24 * 1024 / static_cast<int64_t>(sizeof(C));

 private:
  void make_twist() {
    if (plan_.embedded()) return;
    twist_ = Buffer<Scalar>(2 * plan_.length);
    const double pi = surm::detail::kPi;
    for (int64_t j = 0; j < plan_.length; ++j) {
      const double angle = pi * static_cast<double>(j) / static_cast<double>(plan_.length);
      twist_[j / L * 2 * L + j % L] = static_cast<Scalar>(std::cos(angle));
      twist_[j / L * 2 * L + L + j % L] = static_cast<Scalar>(std::sin(angle));
    }
  }

  int64_t count_tiles(size_t stage, int64_t blocks) const;

  Plan plan_;
  Buffer<Scalar> twiddles_, twist_;
  std::vector<size_t> starts_;
  std::vector<std::vector<Scalar>> turns_;
};

// The transform for rows of n values, or padded to a length of at least n; kept for the next call.
template <class Scalar>
std::shared_ptr<const Transform<Scalar>> transform_of(int64_t size, bool padded = false) {
  constexpr size_t kMostKept = 64;
  static std::mutex mutex;
  static std::unordered_map<int64_t, std::shared_ptr<const Transform<Scalar>>> kept[2];
  const std::lock_guard<std::mutex> lock(mutex);
  auto& transforms = kept[padded ? 1 : 0];
  auto found = transforms.find(size);
  if (found == transforms.end()) {
    if (transforms.size() >= kMostKept) transforms.clear();
    constexpr int L = kLanes<Scalar>;
    Plan plan = padded ? make_padded_plan(size, L) : make_plan(size, L);
    found = transforms.emplace(size, std::make_shared<const Transform<Scalar>>(std::move(plan))).first;
  }
  return found->second;
}

// Walks the stages depth first: Work::stage_in before, Work::stage_out after what lies below, Work::middle at the
// bottom with `count` vectors starting at `offset`.
template <class Scalar, class Work>
void descend(const Transform<Scalar>& transform, Work& work, size_t stage, int64_t offset, int64_t blocks) {
  const auto& stages = transform.plan().stages;
  constexpr int L = kLanes<Scalar>;
  if (stage == stages.size()) {
    work.middle(offset, blocks);
    return;
  }
  const int64_t stride = stages[stage].stride / L;
  const int radix = stages[stage].radix;
  work.stage_in(stage, offset, blocks);
  // Decided by the block alone: the tiles must come out the same whatever number of blocks is walked together.
  if (radix * stride > Transform<Scalar>::kCacheVectors && stride >= kTile<Scalar>) {
    for (int64_t k = 0; k < blocks * radix; ++k) descend(transform, work, stage + 1, offset + k * stride, 1);
  } else {
    descend(transform, work, stage + 1, offset, blocks * radix);
  }
  work.stage_out(stage, offset, blocks);
}

template <class Scalar>
int64_t Transform<Scalar>::count_tiles(size_t stage, int64_t blocks) const {
  struct Counter {
    int64_t tiles = 0;
    void stage_in(size_t, int64_t, int64_t) {}
    void stage_out(size_t, int64_t, int64_t) {}
    void middle(int64_t, int64_t count) { tiles += (count + kTile<Scalar> - 1) / kTile<Scalar>; }
  } counter;
  descend(*this, counter, stage, 0, blocks);
  return counter.tiles;
}

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
