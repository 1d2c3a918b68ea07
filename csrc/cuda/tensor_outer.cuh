// The outer stage of a transform of n = R · 256: from pairs of tokens to R rows of 256 in shared memory, and back.
//
// R <= 16 is a product with the transform of R points; the tokens come in as they are, so in bfloat16 the matrix is
// split into two, which leaves nothing to round. R <= 32 is the same on 512 values a row, with a stage of radix 2 in
// float32 behind it; out again both are one product with matrices of R points. R <= 8 has real and imaginary part in
// one matrix. R <= 4 are butterflies in registers. The twist of a skew-circulant matrix is in the matrices and in the
// twiddles behind them; butterflies have factors of their own for it, kTwist.
#pragma once

#include "tensor_tokens.cuh"

namespace surm::cuda {

// What a launch says of the stage.
struct OuterStage {
  const TurnPair* tables;
  int rows;  // R

  // The same, known to the compiler where butterflies leave no choice.
  template <int kRadix>
  __device__ __forceinline__ int rows_of() const {
    return Outer<kRadix>::kOnUnit ? rows : kRadix;
  }
};

template <int kRadix>
struct OuterTables {
  const TurnPair* in;     // of the warp and this lane
  const uint4* matrices;  // of this lane

  __device__ __forceinline__ OuterTables(const TurnPair* tables, const Worker<kRadix>& me)
      : in(tables + TensorTables<kRadix>::kIn + me.warp * Outer<kRadix>::kSlots * kPairsOfCore + me.lane),
        matrices(reinterpret_cast<const uint4*>(tables + TensorTables<kRadix>::kMatrices) + me.lane) {}

  __device__ __forceinline__ uint4 matrix(int which) const { return matrices[which * kLanes]; }
  __device__ __forceinline__ TurnPair turns(int which) const {
    const uint4 bits = matrix(kTurns + which);
    return {{__uint_as_float(bits.x), __uint_as_float(bits.y)}, {__uint_as_float(bits.z), __uint_as_float(bits.w)}};
  }
};

// ---- in ----

// What the stage multiplies values by because its matrix was.
template <int kRadix, class Token>
constexpr float kInScale = kRadix >= 8 && !TokenType<Token>::kIsBFloat16 ? kMatrixScale : 1.0f;

// One column of the stage, value i of all packets, by a product.
template <int kRadix, class Token>
struct UnitIn {
  using Type = TokenType<Token>;
  Dft16 terms[Type::kMatrixTerms];

  __device__ __forceinline__ explicit UnitIn(const OuterTables<kRadix>& tables) {
    if constexpr (Type::kIsBFloat16) {
      terms[0] = {tables.matrix(kInCosHigh), tables.matrix(kInSinHigh)};
      terms[1] = {tables.matrix(kInCosLow), tables.matrix(kInSinLow)};
    } else {
      terms[0] = {tables.matrix(kInCosFloat16), tables.matrix(kInSinFloat16)};
    }
  }

  __device__ __forceinline__ void operator()(const Packets<kRadix>& x, const uint32_t (&scales)[2], int i,
                                             Complex<float> (&column)[4]) const {
    uint32_t rows[2][2];
    SURM_UNROLL
    for (int part = 0; part < 2; ++part) {
      SURM_UNROLL
      for (int k = 0; k < 2; ++k) {
        const uint32_t values = values_of(x.of_token[part][2 * k], x.of_token[part][2 * k + 1], i);
        rows[part][k] = Type::multiply(values, scales[part]);
      }
    }
    float re[4] = {}, im[4] = {};
    SURM_UNROLL
    for (const Dft16& term : terms) {
      transform_columns<false, Type::kIsBFloat16>(term, rows[0][0], rows[0][1], rows[1][0], rows[1][1], re, im);
    }
    SURM_UNROLL
    for (int k = 0; k < 4; ++k) column[k] = {re[k], im[k]};
  }
};

template <class Token>
struct UnitIn<8, Token> {
  using Type = TokenType<Token>;
  uint4 terms[Type::kMatrixTerms];

  __device__ __forceinline__ explicit UnitIn(const OuterTables<8>& tables) {
    if constexpr (Type::kIsBFloat16) {
      terms[0] = tables.matrix(kInHigh);
      terms[1] = tables.matrix(kInLow);
    } else {
      terms[0] = tables.matrix(kInFloat16);
    }
  }

  __device__ __forceinline__ void operator()(const Packets<8>& x, const uint32_t (&scales)[2], int i,
                                             Complex<float> (&column)[2]) const {
    uint32_t rows[2];
    SURM_UNROLL
    for (int part = 0; part < 2; ++part) {
      rows[part] = Type::multiply(values_of(x.of_token[part][0], x.of_token[part][1], i), scales[part]);
    }
    float sums[4] = {};
    SURM_UNROLL
    for (const uint4& term : terms) multiply_add<Type::kIsBFloat16>(sums, term, rows[0], rows[1]);
    column[0] = {sums[0], sums[2]};
    column[1] = {sums[1], sums[3]};
  }
};

// Every row of a butterfly, or of its result, times its factor of the twist, or the conjugate.
template <bool kConjugate, int kRadix>
__device__ __forceinline__ void twist(const OuterTables<kRadix>& tables, Complex<float> (&columns)[8][kRadix]) {
  SURM_UNROLL
  for (int row = 1; row < kRadix; ++row) {
    const TurnPair turns = tables.turns(row / 2);
    const Complex<float> factor = row % 2 == 0 ? turns.first : turns.second;
    SURM_UNROLL
    for (int i = 0; i < 8; ++i) turn<kConjugate>(columns[i][row].re, columns[i][row].im, factor);
  }
}

// All columns by butterflies.
template <class Token, bool kTwist, int kRadix>
__device__ __forceinline__ void butterflies_in(const OuterTables<kRadix>& tables, const Packets<kRadix>& x,
                                               const uint32_t (&scales)[2], Complex<float> (&columns)[8][kRadix]) {
  using Type = TokenType<Token>;
  SURM_UNROLL
  for (int i = 0; i < 8; ++i) {
    SURM_UNROLL
    for (int k = 0; k < kRadix; ++k) {
      float values[2];
      SURM_UNROLL
      for (int part = 0; part < 2; ++part) {
        const uint32_t word = word_of(x.of_token[part][k], i / 2);
        values[part] = (i % 2 == 0 ? Type::first(word) : Type::second(word)) * Type::first(scales[part]);
      }
      columns[i][k] = {values[0], values[1]};
    }
  }
  if constexpr (kTwist) twist<false>(tables, columns);
  SURM_UNROLL
  for (int i = 0; i < 8; ++i) Butterfly<kRadix, false>::apply(columns[i]);
}

// R <= 32: the stage of radix 2. Slots 2x and 2x + 1 are values 256 apart.
__device__ __forceinline__ void radix_2_in(const TurnPair& turns, Complex<float> (&column)[4]) {
  SURM_UNROLL
  for (int x = 0; x < 2; ++x) {
    const Complex<float> factor = x == 0 ? turns.first : turns.second;
    const Complex<float> first = column[2 * x], second = multiply<false>(column[2 * x + 1], factor.re, factor.im);
    column[2 * x] = first + second;
    column[2 * x + 1] = first - second;
  }
}

// `scales` are those of Magnitude16::in().
template <class Token, bool kTwist, int kRadix, int kTerms>
__device__ __forceinline__ void outer_in(const Packets<kRadix>& x, const uint32_t (&scales)[2], const OuterStage& stage,
                                         const Worker<kRadix>& worker, const Planes<kRadix, kTerms>& planes) {
  using O = Outer<kRadix>;
  const Worker<kRadix> me = worker.afresh();
  const OuterTables<kRadix> tables(stage.tables, me);
  if constexpr (kTerms > 1) __syncwarp();  // tables are loaded after it, not where registers are short
  Complex<float> columns[8][O::kSlots];
  if constexpr (O::kOnUnit) {
    const UnitIn<kRadix, Token> unit(tables);
    SURM_UNROLL
    for (int i = 0; i < 8; ++i) unit(x, scales, i, columns[i]);
  } else {
    butterflies_in<Token, kTwist>(tables, x, scales, columns);
  }
  if constexpr (kRadix == 32) {
    const TurnPair turns = tables.turns(0);
    SURM_UNROLL
    for (int i = 0; i < 8; ++i) radix_2_in(turns, columns[i]);
  }
  SURM_UNROLL
  for (int slot = 0; slot < O::kSlots; ++slot) {
    const bool trivial = !O::kOnUnit && slot == 0 && !kTwist;
    SURM_UNROLL
    for (int i = 0; i < 8 && !trivial; i += 2) {
      const TurnPair turns = tables.in[(slot * kQuarters + i / 2) * kLanes];
      turn<false>(columns[i][slot].re, columns[i][slot].im, turns.first);
      turn<false>(columns[i + 1][slot].re, columns[i + 1][slot].im, turns.second);
    }
    Sums values;
    SURM_UNROLL
    for (int i = 0; i < 8; ++i) {
      values.re[i / 4][i % 4] = columns[exchanged(i)][slot].re;
      values.im[i / 4][i % 4] = columns[exchanged(i)][slot].im;
    }
    planes.store(O::place(me.lane, slot), O::column(me.warp, me.lane, slot) / 8, float16_factor<kTerms>(values));
  }
}

// ---- out ----

// Calls store(part, place, values) for neighbouring values of the tokens that it has, times kOutScale.
template <int kRadix, int kTerms, class Store>
__device__ __forceinline__ void unit_out(const OuterTables<kRadix>& tables, const Worker<kRadix>& me,
                                         const Planes<kRadix, kTerms>& planes, const Store& store) {
  constexpr int kParts = Outer<kRadix>::kParts, kRowOf = kParts * kCore;
  const int quarter = me.warp % 4, second = me.warp / 4;  // 64 values of 256, and which 256 of a row
  Dft16 dft{tables.matrix(kOutCos + 2 * second), tables.matrix(kOutSin + 2 * second)};
  float re[8][4] = {}, im[8][4] = {};
  SURM_UNROLL
  for (int part = 0; part < kParts; ++part) {
    SURM_UNROLL
    for (int i = 0; i < 8; ++i) {
      uint32_t terms[kTerms][4];
      planes.load_column(16 * part, 8 * quarter + i, me.lane, terms);
      SURM_UNROLL
      for (const auto& words : terms) {
        transform_columns<true>(dft, words[0], words[1], words[2], words[3], re[i], im[i]);
      }
    }
    if (part + 1 < kParts && second != 0) dft = {negated(dft.cos), negated(dft.sin)};
  }
  SURM_UNROLL
  for (int part = 0; part < 2; ++part) {
    if (!store.has(part)) continue;
    SURM_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int row = row_of_lane(me.lane) + 8 * (k >> 1);
      float values[8];
      SURM_UNROLL
      for (int i = 0; i < 8; ++i) values[i] = part == 0 ? re[i][k] : im[i][k];
      store(part, row * kRowOf + kCore * second + 64 * quarter + 32 * (k & 1) + 8 * pair_of_lane(me.lane), values);
    }
  }
}

template <int kTerms, class Store>
__device__ __forceinline__ void unit_out(const OuterTables<8>& tables, const Worker<8>& me,
                                         const Planes<8, kTerms>& planes, const Store& store) {
  const uint4 matrix = tables.matrix(kOut);
  float sums[8][4] = {};
  SURM_UNROLL
  for (int i = 0; i < 8; ++i) {
    uint32_t terms[kTerms][2];
    planes.load_column(8 * me.warp + i, me.lane, terms);
    SURM_UNROLL
    for (const auto& words : terms) multiply_add<false>(sums[i], matrix, words[0], words[1]);
  }
  SURM_UNROLL
  for (int k = 0; k < 4; ++k) {
    if (!store.has(k >> 1)) continue;
    const int row = row_of_lane(me.lane);
    float values[8];
    SURM_UNROLL
    for (int i = 0; i < 8; ++i) values[i] = sums[i][k];
    store(k >> 1, row * kCore + 64 * me.warp + 32 * (k & 1) + 8 * pair_of_lane(me.lane), values);
  }
}

template <bool kTwist, int kRadix, int kTerms, class Store>
__device__ __forceinline__ void butterflies_out(const OuterTables<kRadix>& tables, const Worker<kRadix>& me,
                                                const Planes<kRadix, kTerms>& planes, const Store& store) {
  uint32_t re[kRadix][kTerms][4], im[kRadix][kTerms][4];
  SURM_UNROLL
  for (int row = 0; row < kRadix; ++row) planes.load_values(row, me.lane, re[row], im[row]);
  Complex<float> columns[8][kRadix];
  SURM_UNROLL
  for (int i = 0; i < 8; ++i) {
    SURM_UNROLL
    for (int row = 0; row < kRadix; ++row) {
      const auto value = [&](const uint32_t (&terms)[kTerms][4]) {
        const auto number = [&](int term) {
          return half_to_float(static_cast<uint16_t>(terms[term][i / 2] >> 16 * (i % 2)));
        };
        float sum = number(0);
        SURM_UNROLL
        for (int term = 1; term < kTerms; ++term) sum += number(term);
        return sum;
      };
      columns[i][row] = {value(re[row]), value(im[row])};
    }
    Butterfly<kRadix, true>::apply(columns[i]);
  }
  if constexpr (kTwist) twist<true>(tables, columns);
  SURM_UNROLL
  for (int part = 0; part < 2; ++part) {
    if (!store.has(part)) continue;
    SURM_UNROLL
    for (int word = 0; word < 4; ++word) {
      SURM_UNROLL
      for (int k = 0; k < kRadix; ++k) {
        const Complex<float>&first = columns[2 * word][k], &second = columns[2 * word + 1][k];
        store(part, kCore * k + 64 * word + planes.column_of_lane(me.lane),
              {part == 0 ? first.re : first.im, part == 0 ? second.re : second.im});
      }
    }
  }
}

template <bool kTwist, int kRadix, int kTerms, class Store>
__device__ __forceinline__ void outer_out(const OuterStage& stage, const Worker<kRadix>& worker,
                                          const Planes<kRadix, kTerms>& planes, const Store& store) {
  const Worker<kRadix> me = worker.afresh();
  const OuterTables<kRadix> tables(stage.tables, me);
  if constexpr (Outer<kRadix>::kOnUnit) {
    unit_out(tables, me, planes, store);
  } else {
    butterflies_out<kTwist>(tables, me, planes, store);
  }
}

}  // namespace surm::cuda
