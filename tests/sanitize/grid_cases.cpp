// Cases of the grid operators: grids of blocks of every kind, by the index formula of an entry.
#include <stdexcept>

#include "cases.h"
#include "cpu/instruction_set.h"
#include "entries.h"

namespace surm::sanitize {
namespace {

// Blocks M × K of m × n in so many groups with so many tokens each.
struct Sizes {
  int64_t groups, tokens, out_blocks, in_blocks, rows, columns;
};

constexpr Sizes kSizes[] = {
    {1, 1, 1, 1, 1, 1},   {2, 3, 1, 1, 2, 2},   {1, 33, 1, 1, 5, 5},   {2, 70, 1, 1, 16, 16},  {1, 41, 1, 1, 64, 64},
    {3, 9, 1, 1, 97, 97}, {1, 8, 1, 1, 96, 60}, {1, 5, 1, 1, 61, 100}, {1, 130, 2, 3, 4, 4},   {2, 19, 3, 1, 12, 12},
    {1, 64, 1, 2, 31, 7}, {1, 2, 5, 2, 24, 40}, {1, 7, 2, 2, 50, 50},  {2, 6, 1, 1, 384, 384},
};
// Of float64 and more than fit L1, so that its transform is split depth first.
constexpr Sizes kLarge{1, 3, 1, 1, 2048, 2048};

struct Problem {
  Problem(const GridShape& grid_shape, StorageType row_type, bool has_base, uint64_t seed)
      : shape(grid_shape),
        type(row_type),
        value_type(shape.wide ? StorageType::kFloat32 : type),
        count(is_wrapped(shape.kind) ? shape.columns : shape.rows + shape.columns - 1),
        x(type, shape.groups, shape.tokens, in_width(), seed),
        g(type, shape.groups, shape.tokens, out_width(), seed + 1),
        base(type, shape.groups, shape.tokens, out_width(), seed + 2),
        base_rows(has_base ? base.rows() : ConstRows{}),
        values(random_array(value_type, blocks() * shape.groups * count, seed + 3)),
        weight(random_array(type, shape.height() * shape.width(), seed + 4)) {}

  int64_t blocks() const { return shape.out_blocks * shape.in_blocks; }
  int64_t in_width() const { return shape.transposed ? shape.height() : shape.width(); }
  int64_t out_width() const { return shape.transposed ? shape.width() : shape.height(); }

  // Calls body(i, j, value, sign) for every entry of W of a group.
  template <class Body>
  void for_entries(int64_t group, const Body& body) const {
    for (int64_t i = 0; i < shape.height(); ++i) {
      for (int64_t j = 0; j < shape.width(); ++j) {
        const int64_t block = (group * shape.out_blocks + i / shape.rows) * shape.in_blocks + j / shape.columns;
        const Entry entry = entry_of(shape.kind, i % shape.rows, j % shape.columns, shape.columns);
        body(i, j, block * count + entry.value, entry.sign);
      }
    }
  }

  Matrix matrix(int64_t group) const {
    Matrix w(shape.height(), shape.width());
    for_entries(group, [&](int64_t i, int64_t j, int64_t value, double sign) { w(i, j) = sign * values.at(value); });
    return w;
  }

  // Adds <d, W> by its values to `sums`, which are those of all groups.
  void add_sums(int64_t group, const Matrix& d, std::vector<double>& sums) const {
    for_entries(group, [&](int64_t i, int64_t j, int64_t value, double sign) { sums[value] += sign * d(i, j); });
  }

  GridShape shape;
  StorageType type, value_type;
  int64_t count;  // values of a block
  Tokens x, g, base;
  ConstRows base_rows;
  Array values, weight;
};

constexpr double kScale = 0.75;

std::vector<Output> product_outputs(const Problem& problem) {
  std::vector<double> y, x_gradient, gradient(problem.values.count());
  for (int64_t group = 0; group < problem.shape.groups; ++group) {
    const Matrix w = problem.matrix(group), acting = problem.shape.transposed ? transpose(w) : w;
    const Matrix x = problem.x.of_group(group), g = problem.g.of_group(group);
    const Matrix product = kScale * (x * transpose(acting));
    append(y, problem.base_rows.data != nullptr ? problem.base.of_group(group) + product : product);
    append(x_gradient, kScale * (g * acting));
    const Matrix d = kScale * (transpose(g) * x);
    problem.add_sums(group, problem.shape.transposed ? transpose(d) : d, gradient);
  }
  return {{"y", problem.type, y},
          {"y by spectrum", problem.type, y},
          {"gradient of x", problem.type, x_gradient},
          {"gradient of values", problem.value_type, gradient},
          {"gradient of values alone", problem.value_type, gradient}};
}

void by_spectrum(const Problem& problem, const Array& y, const cpu::ParallelFor& parallel) {
  const cpu::GridKernels& kernels = *cpu::instruction_set().grid;
  const int64_t size = kernels.spectrum_size(problem.value_type, problem.shape);
  const Array spectrum(compute_type(problem.value_type), size);
  kernels.spectrum(problem.value_type, problem.shape, problem.values.data(), spectrum.data(), parallel);
  GridShape shape = problem.shape;
  if (shape.transposed) {
    std::swap(shape.out_blocks, shape.in_blocks);
    std::swap(shape.rows, shape.columns);
    shape.transposed = false;
  }
  const bool fits = kernels.matmul_by_spectrum(problem.type, shape, problem.x.rows(), spectrum.data(), size,
                                               problem.base_rows, kScale, y.data(), parallel);
  if (!fits) throw std::runtime_error("the spectrum is said to be one of other sizes");
}

void products(const Problem& problem, const std::vector<Array>& arrays, const cpu::ParallelFor& parallel) {
  const cpu::GridKernels& kernels = *cpu::instruction_set().grid;
  kernels.matmul(problem.type, problem.shape, problem.x.rows(), problem.values.data(), problem.base_rows, kScale,
                 arrays[0].data(), parallel);
  by_spectrum(problem, arrays[1], parallel);
  kernels.backward(problem.type, problem.shape, problem.g.rows(), problem.x.rows(), problem.values.data(), kScale,
                   arrays[2].data(), arrays[3].data(), parallel);
  kernels.backward(problem.type, problem.shape, problem.g.rows(), problem.x.rows(), nullptr, kScale, nullptr,
                   arrays[4].data(), parallel);
}

// The type that a weight of another is merged into: the same, or float32 with each of them.
StorageType merged_type(const Problem& problem) {
  return problem.shape.transposed ? StorageType::kFloat32 : problem.type;
}

std::vector<Output> matrix_outputs(const Problem& problem) {
  std::vector<double> w, sums(problem.values.count());
  for (int64_t group = 0; group < problem.shape.groups; ++group) {
    append(w, problem.matrix(group));
    problem.add_sums(group, problem.weight.matrix(0, problem.shape.height(), problem.shape.width()), sums);
  }
  const Matrix weight = problem.weight.matrix(0, problem.shape.height(), problem.shape.width());
  std::vector<double> first_sums(sums.begin(), sums.begin() + problem.blocks() * problem.count);
  return {{"W", problem.value_type, w},
          {"sums of a weight", problem.type, first_sums},
          {"merged weight", merged_type(problem), (weight + kScale * problem.matrix(0)).values}};
}

void matrices(const Problem& problem, const std::vector<Array>& arrays, const cpu::ParallelFor& parallel) {
  const cpu::GridDenseKernels& kernels = *cpu::instruction_set().grid_dense;
  GridShape first = problem.shape;
  first.groups = 1;
  kernels.dense(problem.value_type, problem.shape, problem.values.data(), arrays[0].data(), parallel);
  kernels.adjoint(problem.type, first, problem.weight.data(), arrays[1].data(), parallel);
  const Merge merge{problem.type,
                    merged_type(problem),
                    problem.weight.data(),
                    problem.shape.width(),
                    arrays[2].data(),
                    problem.shape.width(),
                    nullptr};
  kernels.merge(problem.value_type, first, problem.values.data(), kScale, merge, parallel);
}

std::string name_of(const Problem& problem) {
  const GridShape& shape = problem.shape;
  return "grid of kind " + std::to_string(static_cast<int>(shape.kind)) + ", " + std::to_string(shape.height()) +
         " x " + std::to_string(shape.width()) + ", type " + std::to_string(static_cast<int>(problem.type)) +
         (shape.wide ? ", wide" : "") + (shape.transposed ? ", transposed" : "");
}

Case product_case(const Problem& problem) {
  return {"products with a " + name_of(problem), product_outputs(problem),
          [=](const auto& arrays, const auto& parallel) { products(problem, arrays, parallel); }};
}

Case matrix_case(const Problem& problem) {
  return {"matrices of a " + name_of(problem), matrix_outputs(problem),
          [=](const auto& arrays, const auto& parallel) { matrices(problem, arrays, parallel); }};
}

GridShape shape_of(const Sizes& sizes, BlockKind kind, bool transposed) {
  const int64_t rows = is_wrapped(kind) ? sizes.columns : sizes.rows;
  return {sizes.groups, sizes.tokens, sizes.out_blocks, sizes.in_blocks, rows, sizes.columns, kind, transposed};
}

}  // namespace

std::vector<Case> grid_cases() {
  std::vector<Case> cases;
  int turn = 0;
  for (const Sizes& sizes : kSizes) {
    for (int kind = 0; kind < kBlockKinds; ++kind, ++turn) {
      const StorageType type = kTypes[(turn + turn / 4) % 4];
      GridShape shape = shape_of(sizes, static_cast<BlockKind>(kind), turn / 4 % 2 != 0);
      shape.wide = type != compute_type(type) && turn / 8 % 2 != 0;
      const Problem problem(shape, type, turn % 3 != 0, turn);
      cases.push_back(product_case(problem));
      cases.push_back(matrix_case(problem));
    }
  }
  cases.push_back(product_case({shape_of(kLarge, BlockKind::kSkewCirculant, false), StorageType::kFloat64, true, 500}));
  // More sizes than are kept (csrc/cpu/transform.h), so that some are dropped while others use them.
  for (int64_t n = 1; n <= 70; ++n) {
    const GridShape shape = shape_of({1, 2, 1, 1, n, n}, BlockKind::kCirculant, false);
    cases.push_back(product_case({shape, StorageType::kFloat32, true, 600 + static_cast<uint64_t>(n)}));
  }
  return cases;
}

}  // namespace surm::sanitize
