// Powers of nodes, the rows of a Vandermonde matrix, compiled once per instruction set.
//
// A vector of consecutive powers moves along the row by one multiplication, in float64, so that float32 is rounded
// once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "powers.h"
#include "vector.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

constexpr int64_t kValuesWorthAThread = 16 * 1024;
constexpr int64_t kFreshStart = 16;  // columns of float64 after which std::pow takes away what rounding has added

template <class Scalar>
void powers_of(double node, int64_t columns, Scalar* row) {
  constexpr int L = kLanes<double>;
  using V = Vector<double>;
  V first{};
  first[0] = 1;
  for (int k = 1; k < L; ++k) first[k] = first[k - 1] * node;
  const double step = first[L - 1] * node, least = static_cast<double>(std::numeric_limits<Scalar>::min());
  V power = first;
  for (int64_t j = 0; j < columns; j += L) {
    if (sizeof(Scalar) == sizeof(double) && j > 0 && j % kFreshStart == 0) {
      power = first * std::pow(node, static_cast<double>(j));
    }
    const V magnitude = power < 0 ? -power : power;
    power = magnitude < least ? V{} : power;
    const auto rounded = __builtin_convertvector(power, Vector<Scalar, L>);
    std::memcpy(row + j, &rounded, std::min<int64_t>(L, columns - j) * sizeof(Scalar));
    power *= step;
  }
}

template <class Scalar>
void powers(const Scalar* v, int64_t count, int64_t columns, Scalar* w, const ParallelFor& parallel) {
  parallel(count, std::max<int64_t>(1, kValuesWorthAThread / columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) powers_of(static_cast<double>(v[i]), columns, w + i * columns);
  });
}

void powers_of_type(StorageType type, const void* v, int64_t count, int64_t columns, void* w,
                    const ParallelFor& parallel) {
  if (type == StorageType::kFloat64) {
    powers(static_cast<const double*>(v), count, columns, static_cast<double*>(w), parallel);
  } else {
    powers(static_cast<const float*>(v), count, columns, static_cast<float*>(w), parallel);
  }
}

}  // namespace

extern const PowersKernels powers_kernels;
const PowersKernels powers_kernels{powers_of_type};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
