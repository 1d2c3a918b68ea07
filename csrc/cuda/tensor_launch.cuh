// What the launches of transforms on the matrix unit share.
#pragma once

#include <algorithm>

#include "geometry.cuh"
#include "tensor_tokens.cuh"

namespace surm::cuda {

inline Tokens tokens_at(const ConstRows& rows) { return {static_cast<const uint16_t*>(rows.data), rows.row_stride}; }

// Blocks of threads that share the pairs of tokens, at most so many.
template <int kRadix>
int64_t blocks_of(int64_t tokens, int64_t most) {
  return std::max<int64_t>(1, std::min(most, divide_up(divide_up(tokens, 2), Outer<kRadix>::kRowsOfBlock)));
}

// Returns body(std::integral_constant<int, R>, tables on the current device) for a length that has them.
template <class Body>
int with_tables(int64_t length, const Body& body) {
  int result = 0;
  const DevicePlan<float>* plan = device_plan<float>(length, false, &result);
  if (plan == nullptr) return result;
  const auto* tables = reinterpret_cast<const TurnPair*>(plan->tensor_tables);
  const bool found = with_outer_radix(length, [&](auto outer) { result = body(outer, tables); });
  return found ? result : static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace surm::cuda
