// What the torch glue hands to the CPU kernels: raw pointers, sizes, and a way to run in parallel; nothing of torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace surm::cpu {

enum class StorageType { kFloat64, kFloat32, kBFloat16, kFloat16 };

// Runs body(begin, end) over disjoint parts of 0 … count-1, at least `grain` items each, on any number of threads.
using RangeBody = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t grain, const RangeBody& body)>;

// Rows of a tensor (groups, tokens, width); the last dimension is contiguous, strides count elements.
struct ConstRows {
  const void* data = nullptr;
  int64_t group_stride = 0;
  int64_t row_stride = 0;
};

}  // namespace surm::cpu
