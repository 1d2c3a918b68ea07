// What the launches of transforms on the matrix unit share.
#pragma once

#include <algorithm>

#include "geometry.cuh"
#include "tensor_outer.cuh"

namespace surm::cuda {

inline Tokens tokens_at(const ConstRows& rows, int64_t size) {
  return {static_cast<const uint16_t*>(rows.data), rows.row_stride, static_cast<int>(size)};
}

// What a transform in, or out, multiplies by because the matrices of its core and of its outer stage were.
constexpr double kCoreScale = static_cast<double>(kMatrixScale) * kMatrixScale;
template <int kRadix, class Token>
constexpr double kScaleIn = kCoreScale * kInScale<kRadix, Token>;
template <int kRadix>
constexpr double kScaleOut = kCoreScale * kOutScale<kRadix>;

// Blocks of threads that share the pairs of tokens, at most so many.
template <int kRadix>
int64_t blocks_of(int64_t tokens, int64_t most) {
  return std::max<int64_t>(1, std::min(most, divide_up(divide_up(tokens, 2), Outer<kRadix>::kRowsOfBlock)));
}

// Calls body(Token{}) for a type of tokens; false where there are no kernels for it.
template <class Body>
bool with_token(StorageType type, const Body& body) {
  if (type == StorageType::kBFloat16) {
    body(BFloat16{});
  } else if (type == StorageType::kFloat16) {
    body(Float16{});
  } else {
    return false;
  }
  return true;
}

// Calls body(std::integral_constant<int, R>, Token{}) for a length and type that there are kernels for.
template <class Body>
bool with_kernels(StorageType type, int64_t length, const Body& body) {
  bool found = false;
  with_outer_radix(length, [&](auto outer) { found = with_token(type, [&](auto token) { body(outer, token); }); });
  return found;
}

// Returns body(std::integral_constant<int, kRadix>, Token{}, whether butterflies have to twist, the stage on the
// current device) where there are kernels.
template <class Body>
int with_stage(StorageType type, int64_t length, bool twisted, const Body& body) {
  int result = 0;
  const DevicePlan<float>* plan = device_plan<float>(length, false, &result);
  if (plan == nullptr) return result;
  const OuterStage stage{reinterpret_cast<const TurnPair*>(plan->tensor_tables[twisted ? 1 : 0]),
                         static_cast<int>(length / kCore)};
  const bool found = with_kernels(type, length, [&](auto outer, auto token) {
    if constexpr (!Outer<decltype(outer)::value>::kOnUnit && TokenType<decltype(token)>::kIsBFloat16) {
      if (twisted) {
        result = body(outer, token, std::true_type{}, stage);
        return;
      }
    }
    result = body(outer, token, std::false_type{}, stage);
  });
  return found ? result : static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace surm::cuda
