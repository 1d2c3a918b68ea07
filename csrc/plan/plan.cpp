// Chooses the radices of a transform length, and between a transform of length n and an embedding in a smooth length.
#include "plan.h"

#include <algorithm>
#include <limits>
#include <map>

#include "radices.h"

namespace surm {
namespace {

struct RadixCost {
  int radix;
  double cost;
};
#define SURM_RADIX_COST(radix, cost) {radix, cost},
constexpr RadixCost kCosts[] = {SURM_FOR_RADICES(SURM_RADIX_COST)};
#undef SURM_RADIX_COST
constexpr bool is_listed(int radix) {
  for (const RadixCost& entry : kCosts) {
    if (entry.radix == radix) return true;
  }
  return false;
}

// Every radix that a GPU's plan may have: a prime without a butterfly would be taken up to the largest radix alone.
static_assert(kGpuStages.largest < 17 && is_listed(2) && is_listed(3) && is_listed(5) && is_listed(7) &&
                  is_listed(11) && is_listed(13),
              "CUDA kernels have butterflies alone");

constexpr double kTileCost = 10.4;  // the radices inside a vector, with their transpositions

double generic_cost(int radix) { return 2.5 + 0.68 * radix; }

double radix_cost(int radix) {
  for (const RadixCost& entry : kCosts) {
    if (entry.radix == radix) return entry.cost;
  }
  return generic_cost(radix);
}

int smallest_prime_factor(int64_t m, int largest) {
  for (int p = 2; static_cast<int64_t>(p) * p <= m && p <= largest; ++p) {
    if (m % p == 0) return p;
  }
  return m <= largest ? static_cast<int>(m) : 0;  // 0: only factors too large for a stage
}

struct Factors {
  double cost = std::numeric_limits<double>::infinity();
  std::vector<int> radices;
};

// The cheapest way to write m as a product of radices; infinite cost if a prime factor is too large.
const Factors& cheapest_factors(int64_t m, const StageCosts& costs, std::map<int64_t, Factors>& known) {
  const auto found = known.find(m);
  if (found != known.end()) return found->second;
  Factors best;
  if (m == 1) {
    best.cost = 0;
  } else {
    std::vector<int> candidates;
    for (const RadixCost& entry : kCosts) candidates.push_back(entry.radix);
    const int prime = smallest_prime_factor(m, costs.largest);
    if (prime != 0 && !has_butterfly(prime)) candidates.push_back(prime);
    for (const int radix : candidates) {
      if (m % radix != 0) continue;
      const Factors& rest = cheapest_factors(m / radix, costs, known);
      const double cost = rest.cost + radix_cost(radix) + costs.each;
      if (cost < best.cost) {
        best.cost = cost;
        best.radices = rest.radices;
        best.radices.push_back(radix);
      }
    }
  }
  return known.emplace(m, std::move(best)).first->second;
}

// Odd radices first, so that late stages work on blocks whose length is a multiple of the tile.
std::vector<Stage> order_stages(std::vector<int> radices, int64_t length) {
  std::sort(radices.begin(), radices.end(), [](int a, int b) {
    const bool odd_a = a % 2 != 0, odd_b = b % 2 != 0;
    return odd_a != odd_b ? odd_a : a > b;
  });
  std::vector<Stage> stages;
  for (const int radix : radices) {
    length /= radix;
    stages.push_back({radix, length});
  }
  return stages;
}

}  // namespace

bool has_butterfly(int radix) { return is_listed(radix); }

namespace {

// Keeps the cheapest of the lengths it is shown.
class Choice {
 public:
  Choice(int64_t size, int tile, const StageCosts& costs)
      : tile_cost_(tile == 1 ? 0 : kTileCost), costs_(costs), best_{size, 0, tile, {}} {}

  void consider(int64_t length) {
    const Factors& factors = cheapest_factors(length / best_.tile, costs_, known_);
    const double cost = static_cast<double>(length) * (factors.cost + tile_cost_);
    if (cost < best_cost_) {
      best_cost_ = cost;
      best_.length = length;
      best_.stages = order_stages(factors.radices, length);
    }
  }

  // The smooth lengths from `least` to about four thirds of it: all of them where that is quick, else a few for each
  // power of two.
  void consider_from(int64_t least) {
    constexpr int64_t kMostTried = 4096;
    const int64_t tile = best_.tile, first = (least + tile - 1) / tile;
    if (first <= kMostTried) {
      for (int64_t m = first; m <= 2 + first + first / 3; ++m) {
        if (is_smooth(m)) consider(m * tile);
      }
    }
    for (const int64_t odd : {1, 3, 5, 7, 9, 11, 13, 15, 21, 25, 27, 33, 35, 45}) {
      int64_t length = tile * odd;
      while (length < least) length *= 2;
      consider(length);
    }
  }

  const Plan& best() const { return best_; }

 private:
  static bool is_smooth(int64_t m) {
    for (const int prime : {2, 3, 5, 7, 11, 13}) {
      while (m % prime == 0) m /= prime;
    }
    return m == 1;
  }

  const double tile_cost_;
  const StageCosts costs_;
  std::map<int64_t, Factors> known_;
  double best_cost_ = std::numeric_limits<double>::infinity();
  Plan best_;
};

}  // namespace

Plan make_plan(int64_t size, int tile, const StageCosts& costs) {
  Choice choice(size, tile, costs);
  if (size % tile == 0) choice.consider(size);
  choice.consider_from(std::max<int64_t>(2 * size - 1, 1));
  return choice.best();
}

Plan make_padded_plan(int64_t size, int tile, const StageCosts& costs) {
  Choice choice(size, tile, costs);
  choice.consider_from(size);
  return choice.best();
}

std::vector<int64_t> spectrum_order(const Plan& plan) {
  // Stage by stage: output k of a butterfly holds the frequencies ≡ k modulo the radix within what is still to split.
  std::vector<int64_t> order{0};
  int64_t step = 1;
  const auto split = [&](int radix) {
    std::vector<int64_t> next;
    next.reserve(order.size() * radix);
    for (const int64_t frequency : order) {
      for (int64_t k = 0; k < radix; ++k) next.push_back(frequency + k * step);
    }
    order.swap(next);
    step *= radix;
  };
  for (const Stage& stage : plan.stages) split(stage.radix);
  if (plan.tile > 1) split(plan.tile);
  return order;
}

}  // namespace surm
