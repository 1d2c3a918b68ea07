// Both gradients of the product with one block on the matrix unit: sums over tokens of the spectrum of the parameter's,
// and the tokens' own. A block of threads takes every so many pairs of tokens and keeps its sum in shared memory, each
// value of it touched by one lane alone.
#pragma once

#include "tensor_product.cuh"

namespace surm::cuda {

struct TensorGradientsTask {
  Tokens g, x;
  uint16_t* x_gradient;  // contiguous, where it is wanted
  int tokens;
  OuterStage stage;
  const TurnPair* spectrum;  // of the transposed matrix, where x's gradient is wanted
  float scale;               // of x's gradient
  TurnPair* sums;            // for each block of threads, in the order of the core's tables
  int* poisoned;             // for each block of threads: whether a token was not finite
};

// How a pair of tokens enters: every product g x keeps its size beside that of its partner; `weight` is the larger one.
template <class Token>
struct ProductScales {
  using Magnitude = Magnitude16<Token>;
  uint32_t g[2], x[2];
  float weight;

  __device__ __forceinline__ ProductScales(uint32_t g_largest, uint32_t x_largest) {
    int size[2];  // biased twice; 0 where there is no product
    SURM_UNROLL
    for (int part = 0; part < 2; ++part) {
      const Magnitude of_g(g_largest, part), of_x(x_largest, part);
      g[part] = of_g.in();
      size[part] = of_g.useful() && of_x.useful() ? of_g.exponent() + of_x.exponent() : 0;
    }
    const int most = size[0] > size[1] ? size[0] : size[1];
    SURM_UNROLL
    for (int part = 0; part < 2; ++part) {
      x[part] = size[part] == 0 ? 0 : Magnitude(x_largest, part).in(most - size[part]);
    }
    const int biased = most - kBias - 2 * TokenType<Token>::kOne;
    weight = __uint_as_float(static_cast<uint32_t>(biased < 1 ? 0 : biased > 255 ? 255 : biased) << 23);
  }
};

// total += weight · ĝ ∘ conj(x̂), the gradient of the spectrum.
__device__ __forceinline__ void add_product(const Sums& g, const Sums& x, float weight, Shared<TurnPair> total) {
  SURM_UNROLL
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const int half = quarter / 2, k = quarter % 2 * 2;
    const TurnPair before = total[quarter * kLanes];
    const auto sum = [&](int i, const Complex<float>& start) {
      const Complex<float> heavy{g.re[half][i] * weight, g.im[half][i] * weight};
      const float re = x.re[half][i], im = x.im[half][i];
      return Complex<float>{start.re + heavy.re * re + heavy.im * im, start.im + heavy.im * re - heavy.re * im};
    };
    total[quarter * kLanes] = TurnPair{sum(k, before.first), sum(k + 1, before.second)};
  }
}

template <int kRadix>
constexpr int kGradientsBlocks = kRadix == 32 ? 1 : 2;

template <int kRadix>
constexpr int64_t kSumsBytes = int64_t{kRadix} * kCore * sizeof(Complex<float>);

// Of a block: two complex rows for each pair in it, its sums, and the largest magnitudes.
template <int kRadix, class Token>
constexpr int64_t kGradientsShared =
    kLargestBytes<kRadix, 2> + Outer<kRadix>::kRowsOfBlock * (2 * PlanesOf<kRadix, Token>::kBytes + kSumsBytes<kRadix>);

// The sums of all complex rows of a block, in order.
template <int kRadix>
__device__ void write_sums(const Shared<TurnPair>& of_rows, int count, TurnPair* to) {
  for (int i = threadIdx.x; i < count; i += Outer<kRadix>::kThreads) {
    TurnPair sum = of_rows[i];
    SURM_UNROLL
    for (int row = 1; row < Outer<kRadix>::kRowsOfBlock; ++row) {
      const TurnPair more = of_rows[row * count + i];
      sum = {sum.first + more.first, sum.second + more.second};
    }
    to[i] = sum;
  }
}

template <int kRadix, class Token, bool kInputGradient, bool kTwist>
__global__ void __launch_bounds__(Outer<kRadix>::kThreads, kGradientsBlocks<kRadix>)
    tensor_gradients(const TensorGradientsTask task) {
  using O = Outer<kRadix>;
  using Magnitude = Magnitude16<Token>;
  constexpr int64_t kBytes = PlanesOf<kRadix, Token>::kBytes, kSums = 2 * O::kRowsOfBlock * kBytes;
  constexpr int64_t kLargest = kSums + O::kRowsOfBlock * kSumsBytes<kRadix>;
  const Worker<kRadix> me;
  const PlanesOf<kRadix, Token> of_g(2 * me.row * kBytes), of_x((2 * me.row + 1) * kBytes);
  const int rows = task.stage.rows_of<kRadix>();
  const Shared<TurnPair> all_sums = shared_memory<TurnPair>(kSums);
  const Shared<TurnPair> sums = all_sums + (me.row * kRadix * kPairsOfCore + me.lane);
  for (int row = me.warp; row < rows; row += O::kWarps) {
    for (int i = 0; i < kQuarters; ++i) sums[row * kPairsOfCore + i * kLanes] = TurnPair{{0, 0}, {0, 0}};
  }
  int finite = 1;  // no predicate: there are too few of them

  for (int pair = blockIdx.x * O::kRowsOfBlock + me.row; 2 * pair < task.tokens; pair += gridDim.x * O::kRowsOfBlock) {
    const bool alone = 2 * afresh(pair) + 1 == task.tokens;
    Packets<kRadix> g = load_pair(task.g, pair, task.tokens, me), x = load_pair(task.x, pair, task.tokens, me);
    uint32_t largest[2] = {largest_of(g), largest_of(x)};
    share_largest(largest, shared_memory<uint32_t>(kLargest), me);
    clear_or_lift<Token>(g, largest[0]);
    clear_or_lift<Token>(x, largest[1]);
    SURM_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (alone) largest[i] &= 0xffff;
      finite &= Magnitude(largest[i], 0).finite() && Magnitude(largest[i], 1).finite() ? 1 : 0;
    }
    const ProductScales<Token> scales(largest[0], largest[1]);
    outer_in<Token, kTwist>(g, scales.g, task.stage, me, of_g);
    outer_in<Token, kTwist>(x, scales.x, task.stage, me, of_x);
    me.wait();
    // Here, so that it takes no registers of the stage in.
    const CoreOf<kRadix, Token> core(task.stage.tables, afresh(me.lane));
    SURM_NO_UNROLL
    for (int row = me.warp; row < rows; row += O::kWarps) {
      const int place = O::place_of_row(rows, row);
      Sums g_hat = core.in(of_g, place);
      add_product(g_hat, core.in(of_x, place), scales.weight, sums + row * kPairsOfCore);
      if constexpr (kInputGradient) {
        turn<false>(g_hat, task.spectrum + 1 + row * kPairsOfCore + me.lane);
        g_hat = core.out(g_hat);
        if (kRadix > 1 || kTwist) {
          turn<true>(g_hat, task.stage.tables + TensorTables<kRadix>::kOutward + row * kPairsOfCore + me.lane);
        }
        __syncwarp();  // the row has been read
        core.store(g_hat, of_g, place);
      }
    }
    if constexpr (kInputGradient) {
      me.wait();
      const float scale = task.scale * task.spectrum[0].first.re;
      const TensorStore<kRadix, Token, false> store{
          task.x_gradient + int64_t{2} * afresh(pair) * task.x.size,
          nullptr,
          0,
          task.x.size,
          alone,
          {scale * Magnitude(largest[0], 0).out(), scale * Magnitude(largest[0], 1).out()}};
      outer_out<kTwist>(task.stage, me, of_g, store);
    }
  }
  const bool poisoned = __syncthreads_or(finite == 0) != 0;
  if (threadIdx.x == 0) task.poisoned[blockIdx.x] = poisoned ? 1 : 0;
  const int count = rows * kPairsOfCore;
  write_sums<kRadix>(all_sums, count, task.sums + static_cast<int64_t>(blockIdx.x) * count);
}

}  // namespace surm::cuda
