// Makes the tables of transforms on the matrix unit, in double.
#include <cmath>
#include <cstring>

#include "device.cuh"
#include "tensor_layout.h"
#include "tensor_tables.h"

namespace surm::cuda {
namespace {

using Table = std::vector<Complex<float>>;

// exp(∓2πi k/n).
Complex<float> turn(int64_t k, int n) {
  const int within = static_cast<int>(k % n);
  return {static_cast<float>(detail::turn_cos(within, n)), static_cast<float>(-detail::turn_sin(within, n))};
}

uint16_t float16(double value) { return float_to_half(static_cast<float>(value)); }
uint16_t bfloat16(double value) { return float_to_bfloat16(static_cast<float>(value)); }

// What is left of a value beside its bfloat16.
double rest(double value) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16(value)) << 16;
  float rounded;
  std::memcpy(&rounded, &bits, sizeof(rounded));
  return value - static_cast<double>(rounded);
}

// A left factor for every lane: entry(row, column) gives the 16 bits.
template <class Entry>
void put_factor(Table& table, int matrices, TensorMatrix which, const Entry& entry) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t words[4];
    for (int k = 0; k < 4; ++k) {
      const int row = row_of_lane(lane) + 8 * (k & 1), column = 2 * pair_of_lane(lane) + 8 * (k >> 1);
      words[k] = entry(row, column) | static_cast<uint32_t>(entry(row, column + 1)) << 16;
    }
    std::memcpy(&table[2 * (matrices + which * kLanes + lane)], words, sizeof(words));
  }
}

// The 16 × 16 matrices of cosines and sines: entry (i, j) is that of angle(i, j) / points of a turn.
template <class Angle, class Rounded>
void put_factors(Table& table, int matrices, TensorMatrix cos, TensorMatrix sin, int points, const Angle& angle,
                 const Rounded& rounded) {
  put_factor(table, matrices, cos,
             [&](int i, int j) { return rounded(detail::turn_cos(angle(exchanged(i), exchanged(j)), points)); });
  put_factor(table, matrices, sin,
             [&](int i, int j) { return rounded(detail::turn_sin(angle(exchanged(i), exchanged(j)), points)); });
}

// R = 8: real and imaginary part of eight values, rows of the first token before those of the second one.
double entry_in(int row, int column) {
  const int turn = exchanged(row % 8) * exchanged(column % 8);
  const double cos = detail::turn_cos(turn, 8), sin = detail::turn_sin(turn, 8);
  if ((row < 8) == (column < 8)) return cos;
  return row < 8 ? sin : -sin;
}

template <int kRadix>
void put_matrices(Table& table) {
  constexpr int kAt = TensorTables<kRadix>::kMatrices;
  const auto product = [](int i, int j) { return i * j; };
  const auto scaled = [](double value) { return float16(kMatrixScale * value); };
  put_factors(table, kAt, kCoreCos, kCoreSin, 16, product, scaled);
  if constexpr (kRadix == 8) {
    put_factor(table, kAt, kInHigh, [](int i, int j) { return bfloat16(entry_in(i, j)); });
    put_factor(table, kAt, kInLow, [](int i, int j) { return bfloat16(rest(entry_in(i, j))); });
    put_factor(table, kAt, kOut, [&](int i, int j) { return scaled(entry_in(j, i)); });
  } else if constexpr (kRadix > 8) {
    put_factors(table, kAt, kInCosHigh, kInSinHigh, 16, product, bfloat16);
    put_factors(table, kAt, kInCosLow, kInSinLow, 16, product, [](double value) { return bfloat16(rest(value)); });
  }
  if constexpr (kRadix == 32) {
    const auto scaled32 = [](double value) { return float16(kMatrixScale32 * value); };
    put_factors(table, kAt, kOutCos, kOutSin, 32, [](int i, int j) { return 2 * i * j; }, scaled32);
    put_factors(
        table, kAt, kOutCosOfSecond, kOutSinOfSecond, 32, [](int i, int j) { return (2 * i + 1) * j; }, scaled32);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int x = 0; x < 2; ++x) {
        table[2 * (kAt + kInTurns * kLanes + lane) + x] = turn(exchanged(row_of_lane(lane) + 8 * x), 32);
      }
    }
  }
}

template <int kRadix>
void put_turns(Table& table) {
  using O = Outer<kRadix>;
  using T = TensorTables<kRadix>;
  for (int place = 0; place < kCore; ++place) {
    const int value = core_value_at(place);
    table[2 * T::kInner + place] = turn(value % 16 * (value / 16), kCore);
    for (int row = 0; row < kRadix; ++row) {
      table[2 * T::kOutward + row * kCore + place] = turn(frequency_of_row(kRadix, row) * value, O::kLength);
    }
  }
  Complex<float>* in = &table[2 * T::kIn];
  for (int warp = 0; warp < O::kWarps; ++warp) {
    for (int slot = 0; slot < O::kSlots; ++slot) {
      for (int i = 0; i < 8; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const int row = O::row(lane, slot), column = O::column(warp, lane, slot) + i;
          in[2 * (((warp * O::kSlots + slot) * kQuarters + i / 2) * kLanes + lane) + i % 2] =
              turn(frequency_of_row(kRadix, row) * column, O::kLength);
        }
      }
    }
  }
}

}  // namespace

std::vector<Complex<float>> tensor_tables(int64_t length) {
  Table table;
  with_outer_radix(length, [&](auto radix) {
    table.resize(2 * TensorTables<decltype(radix)::value>::kCount);
    put_turns<decltype(radix)::value>(table);
    put_matrices<decltype(radix)::value>(table);
  });
  return table;
}

}  // namespace surm::cuda
