// What the launches of transforms on the matrix unit share.
#pragma once

#include <algorithm>

#include "geometry.cuh"
#include "tensor_outer.cuh"

namespace surm::cuda {

inline Tokens tokens_at(const ConstRows& rows, int64_t size) {
  return {static_cast<const uint16_t*>(rows.data), rows.row_stride, static_cast<int>(size)};
}

// Blocks of threads that share the pairs of tokens, at most so many.
template <int kRadix>
int64_t blocks_of(int64_t tokens, int64_t most) {
  return std::max<int64_t>(1, std::min(most, divide_up(divide_up(tokens, 2), Outer<kRadix>::kRowsOfBlock)));
}

// Returns body(std::integral_constant<int, kRadix>, whether butterflies have to twist, the stage on the current device)
// for a length that has one.
template <class Body>
int with_stage(int64_t length, bool twisted, const Body& body) {
  int result = 0;
  const DevicePlan<float>* plan = device_plan<float>(length, false, &result);
  if (plan == nullptr) return result;
  const OuterStage stage{reinterpret_cast<const TurnPair*>(plan->tensor_tables[twisted ? 1 : 0]),
                         static_cast<int>(length / kCore)};
  const bool found = with_outer_radix(length, [&](auto outer) {
    if constexpr (!Outer<decltype(outer)::value>::kOnUnit) {
      if (twisted) {
        result = body(outer, std::true_type{}, stage);
        return;
      }
    }
    result = body(outer, std::false_type{}, stage);
  });
  return found ? result : static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace surm::cuda
