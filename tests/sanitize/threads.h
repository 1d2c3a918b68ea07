// Ways to run what a kernel runs in parallel (csrc/cpu/interface.h): on threads of our own, and one after the other.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "cpu/interface.h"

namespace surm::sanitize {

// On several threads at once, in parts smaller than a kernel asks for, so that small problems have parts enough for all
// of them. Which thread takes which part is chance, and nothing but the start and the end orders what they do.
class Threads {
 public:
  explicit Threads(int count) : count_(count) {}

  void operator()(int64_t count, int64_t grain, const cpu::RangeBody& body) const {
    const int64_t part = std::clamp<int64_t>(count / (4 * count_), 1, grain);
    std::atomic<int64_t> next{0};
    const auto take_parts = [&] {
      for (;;) {
        const int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
        if (begin >= count) return;
        body(begin, std::min(count, begin + part));
      }
    };
    std::vector<std::thread> others;
    for (int i = 1; i < count_; ++i) others.emplace_back(take_parts);
    take_parts();
    for (std::thread& other : others) other.join();
  }

 private:
  int count_;
};

inline void in_one_part(int64_t count, int64_t, const cpu::RangeBody& body) {
  if (count > 0) body(0, count);
}

}  // namespace surm::sanitize
