// Small discrete Fourier transforms in registers: u[k] <- Σ_j u[j] exp(∓2πi jk/R), minus forward, plus inverse.
// Shared by the CPU (Value: a SIMD vector) and CUDA (Value: float or double); no torch inside.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define SURM_INLINE __host__ __device__ __forceinline__
#define SURM_UNROLL _Pragma("unroll")
#define SURM_NO_UNROLL _Pragma("unroll 1")
#elif defined(__clang__)
#define SURM_INLINE inline __attribute__((always_inline))
#define SURM_UNROLL _Pragma("unroll")
#define SURM_NO_UNROLL _Pragma("unroll 1")
#else
#define SURM_INLINE inline __attribute__((always_inline))
#define SURM_UNROLL _Pragma("GCC unroll 64")
#define SURM_NO_UNROLL _Pragma("GCC unroll 1")
#endif

#define SURM_INLINE_LAMBDA __attribute__((always_inline))

namespace surm {

// The arithmetic type of one lane.
template <class Value, bool = std::is_arithmetic<Value>::value>
struct LaneType {
  using type = Value;
};
template <class Value>
struct LaneType<Value, false> {
  using type = typename std::decay<decltype(std::declval<Value&>()[0])>::type;
};
template <class Value>
using Lane = typename LaneType<Value>::type;

// Aligned so that a number whose parts are no vectors is loaded at once.
template <class Value>
struct alignas(std::is_arithmetic<Value>::value ? 2 * sizeof(Value) : alignof(Value)) Complex {
  Value re, im;
};

template <class Value>
SURM_INLINE Complex<Value> operator+(const Complex<Value>& a, const Complex<Value>& b) {
  return {a.re + b.re, a.im + b.im};
}

template <class Value>
SURM_INLINE Complex<Value> operator-(const Complex<Value>& a, const Complex<Value>& b) {
  return {a.re - b.re, a.im - b.im};
}

// a · w, or a · conj(w).
template <bool kConjugate, class Value, class Factor>
SURM_INLINE Complex<Value> multiply(const Complex<Value>& a, Factor re, Factor im) {
  if (kConjugate) return {a.re * re + a.im * im, a.im * re - a.re * im};
  return {a.re * re - a.im * im, a.im * re + a.re * im};
}

// a · (∓i): a quarter turn in the direction of the transform.
template <bool kInverse, class Value>
SURM_INLINE Complex<Value> quarter_turn(const Complex<Value>& a) {
  if (kInverse) return {-a.im, a.re};
  return {a.im, -a.re};
}

namespace detail {

constexpr double kPi = 3.141592653589793238462643383279502884;

// Taylor series on |x| <= π/4, exact to the last bit or so: std::cos is not constexpr.
constexpr double small_cos(double x) {
  double term = 1, sum = 1;
  for (int i = 1; i <= 12; ++i) {
    term *= -x * x / ((2 * i - 1) * (2 * i));
    sum += term;
  }
  return sum;
}
constexpr double small_sin(double x) {
  double term = x, sum = x;
  for (int i = 1; i <= 12; ++i) {
    term *= -x * x / ((2 * i) * (2 * i + 1));
    sum += term;
  }
  return sum;
}

// cos and sin of 2π k/n, reduced to an eighth of a turn.
constexpr double turn_cos(int k, int n);
constexpr double turn_sin(int k, int n) {
  k = ((k % n) + n) % n;
  if (2 * k > n) return -turn_sin(n - k, n);
  if (4 * k > n) return turn_sin(n - 2 * k, 2 * n);
  if (8 * k > n) return small_cos(kPi / 2 - 2 * kPi * k / n);
  return small_sin(2 * kPi * k / n);
}
constexpr double turn_cos(int k, int n) {
  k = ((k % n) + n) % n;
  if (2 * k > n) return turn_cos(n - k, n);
  if (4 * k > n) return -turn_cos(n - 2 * k, 2 * n);
  if (8 * k > n) return small_sin(kPi / 2 - 2 * kPi * k / n);
  return small_cos(2 * kPi * k / n);
}

template <class Scalar, int kCount>
struct TurnTable {
  Scalar cos[kCount] = {}, sin[kCount] = {};
  constexpr TurnTable() {
    for (int k = 0; k < kCount; ++k) {
      cos[k] = static_cast<Scalar>(turn_cos(k, kCount));
      sin[k] = static_cast<Scalar>(turn_sin(k, kCount));
    }
  }
};

}  // namespace detail

// Odd prime R: sums and differences of mirrored inputs halve the work of the dense transform.
template <int R, bool kInverse>
struct Butterfly {
  template <class Value>
  static SURM_INLINE void apply(Complex<Value>* u) {
    static_assert(R % 2 == 1, "composite radices have their own specialisation");
    constexpr int kHalf = (R - 1) / 2;
    constexpr detail::TurnTable<Lane<Value>, R> turns{};
    Complex<Value> sum[kHalf], difference[kHalf];
    Complex<Value> total = u[0];
    SURM_UNROLL
    for (int k = 0; k < kHalf; ++k) {
      sum[k] = u[k + 1] + u[R - 1 - k];
      difference[k] = u[k + 1] - u[R - 1 - k];
      total = total + sum[k];
    }
    SURM_UNROLL
    for (int m = 1; m <= kHalf; ++m) {
      Complex<Value> even = u[0];
      Complex<Value> odd = {turns.sin[m] * difference[0].re, turns.sin[m] * difference[0].im};
      SURM_UNROLL
      for (int k = 0; k < kHalf; ++k) {
        const Lane<Value> c = turns.cos[m * (k + 1) % R], s = turns.sin[m * (k + 1) % R];
        even = {even.re + c * sum[k].re, even.im + c * sum[k].im};
        if (k > 0) odd = {odd.re + s * difference[k].re, odd.im + s * difference[k].im};
      }
      const Complex<Value> turned = quarter_turn<kInverse>(odd);
      u[m] = even + turned;
      u[R - m] = even - turned;
    }
    u[0] = total;
  }
};

template <bool kInverse>
struct Butterfly<1, kInverse> {
  template <class Value>
  static SURM_INLINE void apply(Complex<Value>*) {}
};

template <bool kInverse>
struct Butterfly<2, kInverse> {
  template <class Value>
  static SURM_INLINE void apply(Complex<Value>* u) {
    const Complex<Value> a = u[0], b = u[1];
    u[0] = a + b;
    u[1] = a - b;
  }
};

template <bool kInverse>
struct Butterfly<4, kInverse> {
  template <class Value>
  static SURM_INLINE void apply(Complex<Value>* u) {
    const Complex<Value> a = u[0] + u[2], b = u[0] - u[2];
    const Complex<Value> c = u[1] + u[3], d = quarter_turn<kInverse>(u[1] - u[3]);
    u[0] = a + c;
    u[1] = b + d;
    u[2] = a - c;
    u[3] = b - d;
  }
};

// Radix A·B by Cooley and Tukey: A transforms of B, constant twiddles, B transforms of A.
template <int A, int B, bool kInverse>
struct CompositeButterfly {
  template <class Value>
  static SURM_INLINE void apply(Complex<Value>* u) {
    constexpr detail::TurnTable<Lane<Value>, A * B> turns{};
    Complex<Value> inner[A][B];
    SURM_UNROLL
    for (int a = 0; a < A; ++a) {
      SURM_UNROLL
      for (int b = 0; b < B; ++b) inner[a][b] = u[a + A * b];
      Butterfly<B, kInverse>::apply(inner[a]);
      if (a == 0) continue;
      SURM_UNROLL
      for (int k = 1; k < B; ++k) inner[a][k] = turn<A * B>(inner[a][k], a * k, turns);
    }
    SURM_UNROLL
    for (int k = 0; k < B; ++k) {
      Complex<Value> outer[A];
      SURM_UNROLL
      for (int a = 0; a < A; ++a) outer[a] = inner[a][k];
      Butterfly<A, kInverse>::apply(outer);
      SURM_UNROLL
      for (int a = 0; a < A; ++a) u[k + B * a] = outer[a];
    }
  }

 private:
  // v · exp(∓2πi k/R): eighths of a turn need fewer operations than a complex product.
  template <int R, class Value, class Table>
  static SURM_INLINE Complex<Value> turn(const Complex<Value>& v, int k, const Table& turns) {
    if (4 * k == R) return quarter_turn<kInverse>(v);
    if (8 * k == R) {
      const Complex<Value> q = quarter_turn<kInverse>(v);
      return {turns.cos[k] * (v.re + q.re), turns.cos[k] * (v.im + q.im)};
    }
    if (8 * k == 3 * R) {
      const Complex<Value> q = quarter_turn<kInverse>(v);
      return {turns.sin[k] * (q.re - v.re), turns.sin[k] * (q.im - v.im)};
    }
    return multiply<!kInverse>(v, turns.cos[k % R], turns.sin[k % R]);
  }
};

template <bool kInverse>
struct Butterfly<6, kInverse> : CompositeButterfly<3, 2, kInverse> {};
template <bool kInverse>
struct Butterfly<8, kInverse> : CompositeButterfly<2, 4, kInverse> {};
template <bool kInverse>
struct Butterfly<9, kInverse> : CompositeButterfly<3, 3, kInverse> {};
template <bool kInverse>
struct Butterfly<12, kInverse> : CompositeButterfly<3, 4, kInverse> {};
template <bool kInverse>
struct Butterfly<16, kInverse> : CompositeButterfly<4, 4, kInverse> {};

// Any odd radix up to kMaximum. turns[2(h(m-1) + k-1)] = cos(2π mk/R) and its neighbour the sine, for m, k = 1 … h,
// h = (R-1)/2: odd_butterfly_turns() of the plan.
template <bool kInverse, int kMaximum, class Value>
SURM_INLINE void generic_odd_butterfly(Complex<Value>* u, int radix, const Lane<Value>* turns) {
  const int half = (radix - 1) / 2;
  Complex<Value> sum[kMaximum / 2], difference[kMaximum / 2];
  const Complex<Value> first = u[0];
  Complex<Value> total = first;
  for (int k = 0; k < half; ++k) {
    sum[k] = u[k + 1] + u[radix - 1 - k];
    difference[k] = u[k + 1] - u[radix - 1 - k];
    total = total + sum[k];
  }
  // A few frequencies at a time share the loads; past the last one they repeat it.
  constexpr int kTogether = 4;
  for (int m = 0; m < half; m += kTogether) {
    Complex<Value> even[kTogether], odd[kTogether];
    const Lane<Value>* turn[kTogether];
    SURM_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      turn[i] = turns + 2 * half * (m + i < half ? m + i : half - 1);
      even[i] = first;
      odd[i] = {first.re - first.re, first.re - first.re};
    }
    for (int k = 0; k < half; ++k) {
      SURM_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const Lane<Value> c = turn[i][2 * k], s = turn[i][2 * k + 1];
        even[i] = {even[i].re + c * sum[k].re, even[i].im + c * sum[k].im};
        odd[i] = {odd[i].re + s * difference[k].re, odd[i].im + s * difference[k].im};
      }
    }
    SURM_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      const int frequency = 1 + (m + i < half ? m + i : half - 1);
      const Complex<Value> turned = quarter_turn<kInverse>(odd[i]);
      u[frequency] = even[i] + turned;
      u[radix - frequency] = even[i] - turned;
    }
  }
  u[0] = total;
}

}  // namespace surm
