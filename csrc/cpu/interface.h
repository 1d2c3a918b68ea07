// What the torch glue hands to the CPU kernels: raw pointers, sizes, and a way to run in parallel; nothing of torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "shapes.h"

namespace surm::cpu {

// Runs body(begin, end) over disjoint parts of 0 … count-1, at least `grain` items each, on any number of threads.
using RangeBody = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t grain, const RangeBody& body)>;

}  // namespace surm::cpu
