// Cases of Kronecker products: W = A ⊗ B, entry by entry.
#include "cases.h"
#include "cpu/instruction_set.h"
#include "cpu/kronecker.h"

namespace surm::sanitize {
namespace {

using cpu::KroneckerShape;

// (groups, tokens, p, q, r, s)
constexpr KroneckerShape kShapes[] = {
    {1, 1, 1, 1, 1, 1, false},      {2, 3, 2, 1, 3, 5, false},    {1, 33, 4, 4, 4, 4, false},
    {2, 70, 8, 3, 5, 16, false},    {1, 150, 7, 9, 11, 2, false}, {1, 9, 1, 31, 40, 1, false},
    {1, 6, 24, 20, 17, 13, false},  {3, 20, 16, 16, 8, 8, false}, {1, 300, 3, 2, 2, 3, false},
    {1, 40, 12, 30, 30, 12, false},
};
constexpr double kScale = 0.75;

struct Problem {
  Problem(const KroneckerShape& kronecker_shape, StorageType row_type, bool has_base, uint64_t seed)
      : shape(kronecker_shape),
        type(row_type),
        x(type, shape.groups, shape.tokens, shape.q * shape.s, seed),
        g(type, shape.groups, shape.tokens, shape.p * shape.r, seed + 1),
        base(type, shape.groups, shape.tokens, shape.transposed ? shape.q * shape.s : shape.p * shape.r, seed + 2),
        base_rows(has_base ? base.rows() : ConstRows{}),
        a(random_array(type, shape.groups * shape.p * shape.q, seed + 3)),
        b(random_array(type, shape.groups * shape.r * shape.s, seed + 4)) {}

  // Calls body(i, j, entry of A, entry of B) for every entry of W, which is their product.
  template <class Body>
  void for_entries(const Body& body) const {
    for (int64_t i = 0; i < shape.p * shape.r; ++i) {
      for (int64_t j = 0; j < shape.q * shape.s; ++j) {
        body(i, j, i / shape.r * shape.q + j / shape.s, i % shape.r * shape.s + j % shape.s);
      }
    }
  }

  KroneckerShape shape;
  StorageType type;
  Tokens x, g, base;
  ConstRows base_rows;
  Array a, b;
};

std::vector<Output> outputs_of(const Problem& problem) {
  const KroneckerShape& shape = problem.shape;
  std::vector<double> y, x_gradient, a_gradient, b_gradient;
  for (int64_t group = 0; group < shape.groups; ++group) {
    const Matrix x = problem.x.of_group(group), g = problem.g.of_group(group);
    const Matrix a = problem.a.matrix(group * shape.p * shape.q, shape.p, shape.q);
    const Matrix b = problem.b.matrix(group * shape.r * shape.s, shape.r, shape.s);
    const Matrix d = kScale * (transpose(g) * x);
    Matrix w(shape.p * shape.r, shape.q * shape.s), a_sums(shape.p, shape.q), b_sums(shape.r, shape.s);
    problem.for_entries([&](int64_t i, int64_t j, int64_t of_a, int64_t of_b) {
      w(i, j) = a.values[of_a] * b.values[of_b];
      a_sums.values[of_a] += d(i, j) * b.values[of_b];
      b_sums.values[of_b] += d(i, j) * a.values[of_a];
    });
    const Matrix product = kScale * (shape.transposed ? g * w : x * transpose(w));
    append(y, problem.base_rows.data != nullptr ? problem.base.of_group(group) + product : product);
    append(x_gradient, kScale * (g * w));
    append(a_gradient, a_sums);
    append(b_gradient, b_sums);
  }
  return {{"y", problem.type, y},
          {"gradient of x", problem.type, x_gradient},
          {"gradient of A", problem.type, a_gradient},
          {"gradient of B", problem.type, b_gradient},
          {"gradient of A alone", problem.type, a_gradient},
          {"gradient of B alone", problem.type, b_gradient}};
}

void fill(const Problem& problem, const std::vector<Array>& arrays, const cpu::ParallelFor& parallel) {
  const cpu::KroneckerKernels& kernels = *cpu::instruction_set().kronecker;
  const ConstRows x = problem.x.rows(), g = problem.g.rows();
  const void *a = problem.a.data(), *b = problem.b.data();
  KroneckerShape upright = problem.shape;
  upright.transposed = false;
  kernels.matmul(problem.type, problem.shape, problem.shape.transposed ? g : x, a, b, problem.base_rows, kScale,
                 arrays[0].data(), parallel);
  kernels.backward(problem.type, upright, g, x, a, b, kScale, arrays[1].data(), arrays[2].data(), arrays[3].data(),
                   parallel);
  kernels.backward(problem.type, upright, g, x, nullptr, b, kScale, nullptr, arrays[4].data(), nullptr, parallel);
  kernels.backward(problem.type, upright, g, x, a, nullptr, kScale, nullptr, nullptr, arrays[5].data(), parallel);
}

}  // namespace

std::vector<Case> kronecker_cases() {
  std::vector<Case> cases;
  for (KroneckerShape shape : kShapes) {
    for (const StorageType type : kTypes) {
      const int number = static_cast<int>(cases.size());
      shape.transposed = number % 2 != 0;
      const Problem problem(shape, type, number % 3 != 0, 2000 + number);
      cases.push_back({"Kronecker product, case " + std::to_string(number), outputs_of(problem),
                       [=](const auto& arrays, const auto& parallel) { fill(problem, arrays, parallel); }});
    }
  }
  return cases;
}

}  // namespace surm::sanitize
