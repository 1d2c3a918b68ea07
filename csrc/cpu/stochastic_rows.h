// Vectors of a row of a matrix rounded stochastically as they are stored (../stochastic_rounding.h).
#pragma once

#include <type_traits>

#include "../stochastic_rounding.h"
#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

class StochasticRow {
 public:
  StochasticRow(const uint64_t* key, int64_t row) : key_(row_key(*key, static_cast<uint64_t>(row))) {}

  // to[0 … count) = the values of the row from `column` on.
  template <class Storage>
  SURM_INLINE void store(Storage* to, const Vector<float>& value, int64_t column, int64_t count) const {
    Word columns{};
    for (int lane = 0; lane < kLanes<float>; ++lane) columns[lane] = lane;
    const Word random = random_word<Word>(key_, columns + static_cast<uint32_t>(column)), bits = (Word)value;
    const Word rounded =
        std::is_same<Storage, BFloat16>::value ? bfloat16_bits(bits, random) : float16_bits(bits, random);
    const auto narrow = __builtin_convertvector(rounded, Vector<uint16_t, kLanes<float>>);
    // The usual length is a constant.
    std::memcpy(to, &narrow, count == kLanes<float> ? sizeof(narrow) : count * sizeof(Storage));
  }

 private:
  using Word = Vector<uint32_t>;
  uint64_t key_;
};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
