// The matrix unit for a CPU: what csrc/cuda/matrix_unit.cuh takes when nvcc does not compile it. What a lane holds of a
// factor is read as PTX lays it out, so a kernel that lays it out otherwise multiplies other matrices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "emulator.h"

inline uint32_t __vmaxu2(uint32_t a, uint32_t b) {
  return std::max(a & 0xffff, b & 0xffff) | std::max(a >> 16, b >> 16) << 16;
}

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | static_cast<uint64_t>(b) << 32;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return word;
}

inline uint4 __ldcs(const uint4* from) { return *from; }
inline uint32_t __ldcs(const uint32_t* from) { return *from; }
inline void __stcs(uint4* to, const uint4& value) { *to = value; }
inline void __stcs(uint32_t* to, uint32_t value) { *to = value; }

namespace surm::emulator {

// Value i of a word, 0 or 1.
inline uint16_t part(uint32_t word, int i) { return static_cast<uint16_t>(word >> 16 * i); }

template <bool kBFloat16>
float part_as_float(uint32_t word, int i) {
  return kBFloat16 ? cuda::bfloat16_to_float(part(word, i)) : cuda::half_to_float(part(word, i));
}

// Entries of the factors of a product, whose words of each lane are those of the left factor, then of the right one.
template <bool kBFloat16>
float left_entry(const OperandsOfWarp& lanes, int row, int column) {
  const int word = row / 8 + 2 * (column / 8);
  return part_as_float<kBFloat16>(lanes[row % 8 * 4 + column % 8 / 2][word], column % 2);
}

template <bool kBFloat16>
float right_entry(const OperandsOfWarp& lanes, int row, int column) {
  return part_as_float<kBFloat16>(lanes[column * 4 + row % 8 / 2][4 + row / 8], row % 2);
}

}  // namespace surm::emulator

namespace surm::cuda {

template <bool kBFloat16>
void multiply_add(float (&sums)[4], const uint4& left, uint32_t right0, uint32_t right1,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const emulator::OperandsOfWarp& lanes =
      emulator::block.meet({file, line}, "matrix product", {left.x, left.y, left.z, left.w, right0, right1});
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    double sum = sums[i];
    for (int k = 0; k < 16; ++k) {
      sum += static_cast<double>(emulator::left_entry<kBFloat16>(lanes, g + 8 * (i / 2), k)) *
             emulator::right_entry<kBFloat16>(lanes, k, 2 * t + i % 2);
    }
    sums[i] = static_cast<float>(sum);
  }
}

inline void multiply_add(float (&sums)[4], uint32_t left0, uint32_t left1, uint32_t right,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  multiply_add<false>(sums, uint4{left0, left1, 0, 0}, right, 0, file, line);
}

template <int kCount, bool kTransposed>
void load_matrices(Shared<const uint4> row, uint32_t (&words)[kCount], const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const int lane = emulator::lane(), g = lane / 4, t = lane % 4;
  emulator::Operands operands{};
  if (lane < 8 * kCount) {
    const uint4 values = emulator::shared.load_for_warp<uint4>(row.offset());
    operands = {values.x, values.y, values.z, values.w};
  }
  const emulator::OperandsOfWarp& lanes = emulator::block.meet({file, line}, "matrix load", operands);
  const auto entry = [&](int matrix, int i, int j) { return emulator::part(lanes[8 * matrix + i][j / 2], j % 2); };
  for (int m = 0; m < kCount; ++m) {
    const uint32_t first = kTransposed ? entry(m, 2 * t, g) : entry(m, g, 2 * t);
    const uint32_t second = kTransposed ? entry(m, 2 * t + 1, g) : entry(m, g, 2 * t + 1);
    words[m] = first | second << 16;
  }
}

inline uint32_t float16_pair(float first, float second) {
  return float_to_half(first) | static_cast<uint32_t>(float_to_half(second)) << 16;
}

inline uint32_t bfloat16_pair(float first, float second) {
  return float_to_bfloat16(first) | static_cast<uint32_t>(float_to_bfloat16(second)) << 16;
}

inline uint32_t multiply_bfloat16(uint32_t a, uint32_t b) {
  const auto product = [&](int i) { return emulator::part_as_float<true>(a, i) * emulator::part_as_float<true>(b, i); };
  return bfloat16_pair(product(0), product(1));
}

inline uint32_t multiply_float16(uint32_t a, uint32_t b) {
  const auto product = [&](int i) {
    return emulator::part_as_float<false>(a, i) * emulator::part_as_float<false>(b, i);
  };
  return float16_pair(product(0), product(1));
}

}  // namespace surm::cuda
