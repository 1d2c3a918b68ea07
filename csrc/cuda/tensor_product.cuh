// The product of tokens with one block, as the circulant that acts as it does, on the matrix unit.
#pragma once

#include "tensor_outer.cuh"

namespace surm::cuda {

struct TensorProductTask {
  Tokens x, base;  // base has no data where there is none
  uint16_t* y;     // contiguous, (tokens, y_size)
  int y_size;
  int tokens;
  OuterStage stage;
  const TurnPair* spectrum;  // what tensor_spectrum() made
  float scale;               // makes up for the scales of the matrices, too
};

// Writes both tokens of a pair, times their factors; `places` of y and base begin at token 2 · pair. What is beyond
// the size of a token is left out.
template <int kRadix, class Token, bool kBase>
struct TensorStore {
  uint16_t* y;
  const uint16_t* base;
  int64_t base_stride;
  int size;
  bool alone;  // the pair has one token
  float factors[2];

  __device__ __forceinline__ bool has(int part) const { return part == 0 || !alone; }

  template <int kCount>
  __device__ __forceinline__ void operator()(int part, int place, const float (&values)[kCount]) const {
    const bool inside = !Outer<kRadix>::kOnUnit || place < size;
    store_values<Token, kBase>(y + part * size + place, base + part * base_stride + place, inside, factors[part],
                               values);
  }
};

// Blocks of a multiprocessor for whose registers a kernel is compiled.
template <int kRadix>
constexpr int kProductBlocks = kRadix == 32   ? 1
                               : kRadix == 16 ? 3
                                              : 4;

template <int kRadix, class Token>
using PlanesOf = Planes<kRadix, TokenType<Token>::kTerms>;
template <int kRadix, class Token>
using CoreOf = Core<kRadix, TokenType<Token>::kTerms>;

template <int kRadix, class Token>
constexpr int64_t kProductShared =
    Outer<kRadix>::kRowsOfBlock * PlanesOf<kRadix, Token>::kBytes + kLargestBytes<kRadix, 1>;

template <int kRadix, class Token, bool kBase, bool kTwist>
__global__ void __launch_bounds__(Outer<kRadix>::kThreads, kProductBlocks<kRadix>)
    tensor_product(const TensorProductTask task) {
  using O = Outer<kRadix>;
  using Magnitude = Magnitude16<Token>;
  constexpr int kBytes = PlanesOf<kRadix, Token>::kBytes;
  const Worker<kRadix> me;
  const PlanesOf<kRadix, Token> planes(me.row * kBytes);
  const Shared<uint32_t> memory = shared_memory<uint32_t>(O::kRowsOfBlock * kBytes);
  for (int pair = blockIdx.x * O::kRowsOfBlock + me.row; 2 * pair < task.tokens; pair += gridDim.x * O::kRowsOfBlock) {
    const bool alone = 2 * pair + 1 == task.tokens;
    uint32_t largest[1];
    {
      Packets<kRadix> x = load_pair(task.x, pair, task.tokens, me);
      largest[0] = largest_of(x);
      share_largest(largest, memory, me);
      clear_or_lift<Token>(x, largest[0]);
      if (alone) largest[0] &= 0xffff;
      outer_in<Token, kTwist>(x, {Magnitude(largest[0], 0).in(), Magnitude(largest[0], 1).in()}, task.stage, me,
                              planes);
    }
    me.wait();
    // Here, so that it takes no registers of the stage in.
    const CoreOf<kRadix, Token> core(task.stage.tables, afresh(me.lane));
    const TurnPair* spectrum = task.spectrum + 1 + me.lane;
    const TurnPair* outward = task.stage.tables + TensorTables<kRadix>::kOutward + me.lane;
    const int rows = task.stage.rows_of<kRadix>();
    SURM_NO_UNROLL
    for (int row = me.warp; row < rows; row += O::kWarps) {
      const int place = O::place_of_row(rows, row);
      Sums sums = core.in(planes, place);
      turn<false>(sums, spectrum + row * kPairsOfCore);
      sums = core.out(sums);
      if (kRadix > 1 || kTwist) turn<true>(sums, outward + row * kPairsOfCore);
      __syncwarp();  // the row has been read
      core.store(sums, planes, place);
    }
    me.wait();
    const float scale = task.scale * task.spectrum[0].first.re;
    const TensorStore<kRadix, Token, kBase> store{
        task.y + int64_t{2} * afresh(pair) * task.y_size,
        kBase ? task.base.data + int64_t{2} * afresh(pair) * task.base.stride : nullptr,
        task.base.stride,
        task.y_size,
        alone,
        {scale * Magnitude(largest[0], 0).out(), scale * Magnitude(largest[0], 1).out()}};
    outer_out<kTwist>(task.stage, me, planes, store);
  }
}

}  // namespace surm::cuda
