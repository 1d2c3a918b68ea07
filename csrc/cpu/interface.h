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

// A matrix and where its sum with another goes, which may be itself; the values of a row are contiguous, strides count
// elements. Both have one type, or one of them is float32.
struct Merge {
  StorageType weight_type, out_type;
  const void* weight;
  int64_t weight_stride;
  void* out;
  int64_t out_stride;

  // The type of the sum, which is rounded once; else it is float32.
  bool in_float64() const { return weight_type == StorageType::kFloat64 || out_type == StorageType::kFloat64; }
};

}  // namespace surm::cpu
