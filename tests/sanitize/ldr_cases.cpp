// Cases of low displacement rank products: W is the sum over l of Z_1(left_l) Z_-1(right_l), entry by entry.
#include "cases.h"
#include "cpu/instruction_set.h"
#include "entries.h"

namespace surm::sanitize {
namespace {

// (groups, tokens, rank, size, out_size, in_size)
constexpr LdrShape kShapes[] = {
    {1, 1, 1, 1, 1, 1, false, false},       {2, 3, 2, 2, 2, 1, false, false},      {1, 33, 1, 5, 5, 5, false, false},
    {2, 40, 3, 16, 12, 16, false, false},   {1, 20, 2, 64, 64, 50, false, false},  {1, 9, 2, 97, 97, 97, false, false},
    {2, 130, 1, 24, 24, 24, false, false},  {1, 6, 4, 100, 60, 100, false, false}, {1, 5, 1, 31, 31, 30, false, false},
    {1, 4, 2, 192, 192, 192, false, false},
};
constexpr double kScale = 0.75;

// The n × n matrix of a generator, n values from `first` on, or the sums over its entries of a matrix like it.
Matrix generator_matrix(BlockKind kind, const Array& generator, int64_t first, int64_t n) {
  Matrix z(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const Entry entry = entry_of(kind, i, j, n);
      z(i, j) = entry.sign * generator.at(first + entry.value);
    }
  }
  return z;
}

Matrix generator_sums(BlockKind kind, const Matrix& d) {
  Matrix sums(1, d.rows);
  for (int64_t i = 0; i < d.rows; ++i) {
    for (int64_t j = 0; j < d.rows; ++j) {
      const Entry entry = entry_of(kind, i, j, d.rows);
      sums(0, entry.value) += entry.sign * d(i, j);
    }
  }
  return sums;
}

Matrix columns_reversed(const Matrix& a) {
  Matrix result(a.rows, a.columns);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) result(i, j) = a(i, a.columns - 1 - j);
  }
  return result;
}

// The top left part of a matrix, which is filled up with zeros.
Matrix resized(const Matrix& a, int64_t rows, int64_t columns) {
  Matrix result(rows, columns);
  for (int64_t i = 0; i < std::min(rows, a.rows); ++i) {
    for (int64_t j = 0; j < std::min(columns, a.columns); ++j) result(i, j) = a(i, j);
  }
  return result;
}

struct Problem {
  Problem(const LdrShape& ldr_shape, StorageType row_type, bool has_base, uint64_t seed)
      : shape(ldr_shape),
        type(row_type),
        x(type, shape.groups, shape.tokens, shape.in_size, seed),
        g(type, shape.groups, shape.tokens, shape.out_size, seed + 1),
        base(type, shape.groups, shape.tokens, shape.transposed ? shape.in_size : shape.out_size, seed + 2),
        base_rows(has_base ? base.rows() : ConstRows{}),
        left(random_array(type, shape.groups * shape.rank * shape.size, seed + 3)),
        right(random_array(type, shape.groups * shape.rank * shape.size, seed + 4)) {}

  // Factors l of a group; their product is a term of W before it is cut, and J is in the second.
  Matrix left_factor(int64_t group, int64_t l) const {
    return generator_matrix(BlockKind::kCirculant, left, (group * shape.rank + l) * shape.size, shape.size);
  }
  Matrix right_factor(int64_t group, int64_t l) const {
    const Matrix z =
        generator_matrix(BlockKind::kSkewCirculant, right, (group * shape.rank + l) * shape.size, shape.size);
    return shape.reflected ? columns_reversed(z) : z;
  }

  LdrShape shape;
  StorageType type;
  Tokens x, g, base;
  ConstRows base_rows;
  Array left, right;
};

std::vector<Output> outputs_of(const Problem& problem) {
  const LdrShape& shape = problem.shape;
  std::vector<double> y, x_gradient, left_gradient, right_gradient;
  for (int64_t group = 0; group < shape.groups; ++group) {
    const Matrix x = problem.x.of_group(group), g = problem.g.of_group(group);
    const Matrix d = resized(kScale * (transpose(g) * x), shape.size, shape.size);
    Matrix w(shape.size, shape.size);
    for (int64_t l = 0; l < shape.rank; ++l) {
      const Matrix a = problem.left_factor(group, l), b = problem.right_factor(group, l);
      w = w + a * b;
      const Matrix right = transpose(a) * d;
      append(left_gradient, generator_sums(BlockKind::kCirculant, d * transpose(b)));
      append(right_gradient,
             generator_sums(BlockKind::kSkewCirculant, shape.reflected ? columns_reversed(right) : right));
    }
    w = resized(w, shape.out_size, shape.in_size);
    const Matrix product = kScale * (shape.transposed ? g * w : x * transpose(w));
    append(y, problem.base_rows.data != nullptr ? problem.base.of_group(group) + product : product);
    append(x_gradient, kScale * (g * w));
  }
  return {{"y", problem.type, y},
          {"gradient of x", problem.type, x_gradient},
          {"gradient of left", problem.type, left_gradient},
          {"gradient of right", problem.type, right_gradient},
          {"gradient of left alone", problem.type, left_gradient},
          {"gradient of right alone", problem.type, right_gradient}};
}

void fill(const Problem& problem, const std::vector<Array>& arrays, const cpu::ParallelFor& parallel) {
  const cpu::LdrKernels& kernels = *cpu::instruction_set().ldr;
  const ConstRows x = problem.x.rows(), g = problem.g.rows();
  const void *left = problem.left.data(), *right = problem.right.data();
  kernels.matmul(problem.type, problem.shape, problem.shape.transposed ? g : x, left, right, problem.base_rows, kScale,
                 arrays[0].data(), parallel);
  kernels.backward(problem.type, problem.shape, g, x, left, right, kScale, arrays[1].data(), arrays[2].data(),
                   arrays[3].data(), parallel);
  kernels.backward(problem.type, problem.shape, g, x, nullptr, right, kScale, nullptr, arrays[4].data(), nullptr,
                   parallel);
  kernels.backward(problem.type, problem.shape, g, x, left, nullptr, kScale, nullptr, nullptr, arrays[5].data(),
                   parallel);
}

}  // namespace

std::vector<Case> ldr_cases() {
  std::vector<Case> cases;
  for (LdrShape shape : kShapes) {
    for (int turn = 0; turn < 4; ++turn) {
      const int number = static_cast<int>(cases.size());
      shape.transposed = turn % 2 != 0;
      shape.reflected = turn / 2 != 0;
      const Problem problem(shape, kTypes[(number + number / 4) % 4], number % 3 != 0, 1000 + number);
      cases.push_back({"low displacement rank of " + std::to_string(shape.size) + ", case " + std::to_string(number),
                       outputs_of(problem),
                       [=](const auto& arrays, const auto& parallel) { fill(problem, arrays, parallel); }});
    }
  }
  return cases;
}

}  // namespace surm::sanitize
