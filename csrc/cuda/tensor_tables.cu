// Makes the tables of transforms on the matrix unit, in double.
#include <cmath>
#include <cstring>

#include "device.cuh"
#include "tensor_layout.h"
#include "tensor_tables.h"

namespace surm::cuda {
namespace {

using Table = std::vector<Complex<float>>;

// cos and sin of 2π k/n.
struct Turn {
  double cos = 0, sin = 0;

  Turn() = default;
  Turn(int k, int n) : cos(detail::turn_cos(k, n)), sin(detail::turn_sin(k, n)) {}
  Complex<float> back() const { return {static_cast<float>(cos), static_cast<float>(-sin)}; }
};

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

// The 16 × 16 matrices of cosines and sines of entry(i, j), a Turn.
template <class Entry, class Rounded>
void put_factors(Table& table, int matrices, TensorMatrix cos, TensorMatrix sin, const Entry& entry,
                 const Rounded& rounded) {
  put_factor(table, matrices, cos, [&](int i, int j) { return rounded(entry(i, j).cos); });
  put_factor(table, matrices, sin, [&](int i, int j) { return rounded(entry(i, j).sin); });
}

// The outer stage of R points; twice the frequencies are whole numbers.
template <int kRadix>
struct Stage {
  using O = Outer<kRadix>;
  static constexpr int kParts = O::kParts;
  int radix;
  bool twisted;

  int points() const { return radix / kParts; }
  int twice(int frequency) const { return 2 * frequency - (twisted ? 1 : 0); }

  // Of a place; any where there is no row.
  int row_at(int place) const { return place % O::kPoints + place / O::kPoints * points(); }

  // Frequency of a row, value of n.
  Complex<float> turn(int row, int value) const { return Turn(twice(row) * value, 2 * radix * kCore).back(); }

  // Between a point and a row of kParts · 256 values, of which part `part` is meant.
  Turn entry(int point, int row, int part = 0) const {
    return point < points() && row < points() ? Turn(twice(point) * (kParts * row + part), 2 * radix) : Turn();
  }

  // Real and imaginary parts of eight points in one matrix; those of the first token come before the second one's.
  double real_entry(int row, int column) const {
    const Turn turn = entry(row % 8, column % 8);
    if ((row < 8) == (column < 8)) return turn.cos;
    return row < 8 ? turn.sin : -turn.sin;
  }
};

template <int kRadix>
void put_matrices(const Stage<kRadix>& stage, Table& table) {
  constexpr int kAt = TensorTables<kRadix>::kMatrices;
  const auto scaled = [](double value) { return float16(kMatrixScale * value); };
  const auto low = [](double value) { return bfloat16(rest(value)); };
  put_factors(
      table, kAt, kCoreCos, kCoreSin, [](int i, int j) { return Turn(exchanged(i) * exchanged(j), 16); }, scaled);
  if constexpr (kRadix == 8) {
    put_factor(table, kAt, kInHigh, [&](int i, int j) { return bfloat16(stage.real_entry(i, j)); });
    put_factor(table, kAt, kInLow, [&](int i, int j) { return low(stage.real_entry(i, j)); });
    put_factor(table, kAt, kInFloat16, [&](int i, int j) { return scaled(stage.real_entry(i, j)); });
    put_factor(table, kAt, kOut, [&](int i, int j) { return scaled(stage.real_entry(j, i)); });
  } else if constexpr (kRadix > 8) {
    const auto in = [&](int point, int row) { return stage.entry(point, row); };
    put_factors(table, kAt, kInCosHigh, kInSinHigh, in, bfloat16);
    put_factors(table, kAt, kInCosLow, kInSinLow, in, low);
    put_factors(table, kAt, kInCosFloat16, kInSinFloat16, in, scaled);
    for (int part = 0; part < Outer<kRadix>::kParts; ++part) {
      put_factors(
          table, kAt, TensorMatrix(kOutCos + 2 * part), TensorMatrix(kOutSin + 2 * part),
          [&](int row, int point) { return stage.entry(point, row, part); },
          [](double value) { return float16(kOutScale<kRadix> * value); });
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      Complex<float>& turn = table[2 * (kAt + (kTurns + i / 2) * kLanes + lane) + i % 2];
      // Of the second part of a point; of row i.
      turn = kRadix == 32 ? stage.turn(Outer<kRadix>::place(lane, 2 * i), kCore) : Turn(-i, 2 * stage.radix).back();
    }
  }
}

template <int kRadix>
void put_turns(const Stage<kRadix>& stage, Table& table) {
  using O = Outer<kRadix>;
  using T = TensorTables<kRadix>;
  for (int place = 0; place < kCore; ++place) {
    const int value = core_value_at(place);
    table[2 * T::kInner + place] = Turn(value % 16 * (value / 16), kCore).back();
    for (int row = 0; row < stage.radix; ++row) table[2 * T::kOutward + row * kCore + place] = stage.turn(row, value);
  }
  Complex<float>* in = &table[2 * T::kIn];
  for (int warp = 0; warp < O::kWarps; ++warp) {
    for (int slot = 0; slot < O::kSlots; ++slot) {
      for (int i = 0; i < 8; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const int row = stage.row_at(O::place(lane, slot)), column = O::column(warp, lane, slot) + i;
          in[2 * (((warp * O::kSlots + slot) * kQuarters + i / 2) * kLanes + lane) + i % 2] = stage.turn(row, column);
        }
      }
    }
  }
}

}  // namespace

std::vector<Complex<float>> tensor_tables(int64_t length, bool twisted) {
  Table table;
  with_outer_radix(length, [&](auto outer) {
    constexpr int kRadix = decltype(outer)::value;
    const Stage<kRadix> stage{static_cast<int>(length / kCore), twisted};
    table.resize(2 * TensorTables<kRadix>::kCount);
    put_turns(stage, table);
    put_matrices(stage, table);
  });
  return table;
}

}  // namespace surm::cuda
