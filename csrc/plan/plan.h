// How a row of n values is transformed: the length, the radices in the order they run, and the twiddle factors.
// Shared by the CPU and CUDA kernels; no torch inside.
//
// A transform is decimation in frequency on the way in (natural order -> digit-reversed) and decimation in time on the
// way out, so the spectrum is never reordered. A stage of radix r over blocks of length r·q combines the elements
// j, j+q, …, j+(r-1)q of a block and multiplies result k by w^(jk), w = exp(-2πi/(rq)); the next stage works on the r
// sub-blocks of length q. The last radix, `tile`, is taken inside the registers that hold the last sub-blocks;
// tile = 1 leaves it out.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace surm {

struct Stage {
  int radix;
  int64_t stride;  // q: the distance between the elements a butterfly combines
};

struct Plan {
  int64_t size;    // n: values in a row
  int64_t length;  // N: values transformed; N = n, or N >= 2n - 1 when the row is embedded with zeros
  int tile;        // the last radix
  std::vector<Stage> stages;

  // An embedded f-circulant product is a linear convolution cut to n: two transforms of about 2n, half of what
  // Bluestein's algorithm needs, for any n and any f.
  bool embedded() const { return length != size; }
};

// No stage has a larger radix; primes above it are embedded.
constexpr int kLargestRadix = 64;

// Which radices a plan may have, and what a stage costs besides its butterflies, in the units of plan.cpp.
struct StageCosts {
  int largest = kLargestRadix;
  double each = 0;
};

// On a GPU only radices with a butterfly (has_butterfly; up to 16 every prime has one), and a passage through shared
// memory for every stage, which takes about as long as the arithmetic of a butterfly of radix 16.
constexpr StageCosts kGpuStages{16, 6.0};

// The cheapest plan for rows of n values by the cost model in plan.cpp. n >= 1, tile a power of two.
Plan make_plan(int64_t size, int tile, const StageCosts& costs = {});

// The cheapest plan whose length is at least n, for rows that are padded with zeros anyway.
Plan make_padded_plan(int64_t size, int tile, const StageCosts& costs = {});

// Radices with a butterfly written for them; any other odd prime takes the generic odd butterfly.
bool has_butterfly(int radix);

// Position p of the spectrum holds frequency spectrum_order(plan)[p].
std::vector<int64_t> spectrum_order(const Plan& plan);

// Twiddle factors of all stages, one after another: for each stage, for each group of `lanes` consecutive j, for
// k = 1 … r-1, `lanes` real parts then `lanes` imaginary parts of w^(jk).
template <class Scalar>
std::vector<Scalar> twiddle_factors(const Plan& plan, int lanes) {
  const double pi = 3.141592653589793238462643383279502884;
  std::vector<Scalar> factors;
  for (const Stage& stage : plan.stages) {
    const int64_t length = stage.radix * stage.stride;
    for (int64_t j = 0; j < stage.stride; j += lanes) {
      for (int64_t k = 1; k < stage.radix; ++k) {
        const size_t start = factors.size();
        factors.resize(start + 2 * lanes);
        for (int lane = 0; lane < lanes; ++lane) {
          const double angle = -2 * pi * static_cast<double>((j + lane) * k % length) / static_cast<double>(length);
          factors[start + lane] = static_cast<Scalar>(std::cos(angle));
          factors[start + lanes + lane] = static_cast<Scalar>(std::sin(angle));
        }
      }
    }
  }
  return factors;
}

// Cosines and sines of the generic odd butterfly: 2π mk/R for m, then k, from 1 to (R-1)/2.
template <class Scalar>
std::vector<Scalar> odd_butterfly_turns(int radix) {
  const double pi = 3.141592653589793238462643383279502884;
  std::vector<Scalar> turns;
  for (int m = 1; m <= (radix - 1) / 2; ++m) {
    for (int k = 1; k <= (radix - 1) / 2; ++k) {
      const double angle = 2 * pi * (m * k % radix) / radix;
      turns.push_back(static_cast<Scalar>(std::cos(angle)));
      turns.push_back(static_cast<Scalar>(std::sin(angle)));
    }
  }
  return turns;
}

}  // namespace surm
