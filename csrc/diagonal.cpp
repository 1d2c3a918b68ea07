// The diagonal operators, products with U diag(s) Vᵀ: the platform's matrix products through ATen, each thread's on its
// own chunks of tokens, and the CPU kernels between them. Nothing of tokens × k is ever in memory.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "cpu/instruction_set.h"
#include "glue.h"

using namespace surm::glue;

namespace {

// Some rows of one problem.
struct Part {
  int64_t group, first, rows;
};

// That part of a tensor (groups, rows, columns) for ATen: in place, with any strides. It carries no autograd state: a
// worker thread does not know whether the caller records.
Tensor matrix(const Tensor& t, const Part& part) {
  const int64_t offset = part.group * t.stride(0) + part.first * t.stride(1);
  char* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr())) + offset * t.element_size();
  const std::array<int64_t, 2> sizes{part.rows, t.size(2)}, strides{t.stride(1), t.stride(2)};
  return torch::stable::from_blob(data, sizes, strides, t.device(), t.scalar_type());
}

Tensor matrix(const Tensor& t, int64_t group) { return matrix(t, {group, 0, t.size(1)}); }

Tensor transposed_matrix(const Tensor& t, int64_t group) { return torch::stable::transpose(matrix(t, group), 0, 1); }

// out = left · right. Below the dispatcher, so that a worker thread does what the calling one would do.
void multiply(const Tensor& left, const Tensor& right, const Tensor& out) {
  in_words_of_torch(out, [&] { TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get())); });
}

// out = base + left · right.
void multiply(const Tensor& base, const Tensor& left, const Tensor& right, const Tensor& out) {
  in_words_of_torch(out, [&] {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), base.get(), left.get(), right.get(), 1, 1));
  });
}

// The tokens of every problem in even chunks whose number depends on the shape alone, so that results do not depend on
// the number of threads. One chunk in all runs on the calling thread, where the matrix products have threads of theirs.
class Chunks {
 public:
  Chunks(const Tensor& x, int64_t k) : groups_(x.size(0)), tokens_(x.size(1)) {
    constexpr int64_t kBytes = 1 << 20, kFewest = 32, kMost = 256;  // two buffers of a chunk fit L2
    const int64_t affordable = kBytes / std::max<int64_t>(2 * k * x.element_size(), 1);
    const int64_t rows = std::clamp(affordable, kFewest, kMost);
    count_ = (tokens_ + rows - 1) / rows;
  }

  int64_t count() const { return count_; }  // in each problem

  // Memory for the rows of a chunk, as a tensor of one problem.
  Tensor buffer(const Tensor& x, int64_t k) const { return empty(x, {1, (tokens_ + count_ - 1) / count_, k}); }

  // Calls body(begin, end) for parts of all chunks of all problems.
  void run(const surm::cpu::RangeBody& body) const { parallel_for(groups_ * count_, 1, body); }

  Part at(int64_t item) const {
    const int64_t chunk = item % count_, first = tokens_ * chunk / count_;
    return {item / count_, first, tokens_ * (chunk + 1) / count_ - first};
  }

 private:
  int64_t groups_, tokens_, count_;
};

// What g and x make of s in a chunk; p, q: g U and x V. With s, p becomes scale · s ∘ p.
void meet(const Tensor& p, const Tensor* q, const void* s, double scale, void* sums) {
  surm::cpu::instruction_set().diagonal->meet(storage_type(p), p.size(0), p.size(1), p.mutable_data_ptr(),
                                              q != nullptr ? q->const_data_ptr() : nullptr, s, scale, sums);
}

void check_factors(const Tensor& x, const Tensor& u, const Tensor& v) {
  check_tensor(x, "x", 3, x);
  check_tensor(u, "u", 3, x);
  check_tensor(v, "v", 3, x);
  check_size("u.shape[0]", u.size(0), x.size(0));
  check_size("v.shape[0]", v.size(0), x.size(0));
  check_size("v.shape[1]", v.size(1), x.size(2));
  check_size("v.shape[2]", v.size(2), u.size(2));
}

void check_values(const Tensor& s, const Tensor& u) {
  check_tensor(s, "s", 2, u);
  check_size("s.shape[0]", s.size(0), u.size(0));
  check_size("s.shape[1]", s.size(1), u.size(2));
}

void check_cotangent(const Tensor& g, const Tensor& x, const Tensor& u) {
  check_tensor(g, "g", 3, x);
  for (int64_t d = 0; d < 2; ++d) check_size("a size of g", g.size(d), x.size(d));
  check_size("g.shape[2]", g.size(2), u.size(1));
}

const void* values_of(const Tensor& s, int64_t group) {
  return static_cast<const char*>(s.const_data_ptr()) + group * s.size(1) * s.element_size();
}

Tensor diagonal(const Tensor& x, const Tensor& u, const Tensor& s_in, const Tensor& v,
                const std::optional<Tensor>& base, double scale) {
  check_factors(x, u, v);
  check_values(s_in, u);
  const int64_t k = s_in.size(1);
  const Tensor s = made_contiguous(s_in);
  Tensor y = empty_rows(x, {x.size(0), x.size(1), u.size(1)});
  if (base.has_value()) check_base(*base, y);
  const Chunks chunks(x, k);
  chunks.run([&](int64_t begin, int64_t end) {
    const Tensor buffer = chunks.buffer(x, k);
    for (int64_t item = begin; item < end; ++item) {
      const Part part = chunks.at(item);
      const Tensor p = matrix(buffer, {0, 0, part.rows}), y_part = matrix(y, part);
      multiply(matrix(x, part), matrix(v, part.group), p);
      meet(p, nullptr, values_of(s, part.group), scale, nullptr);
      const Tensor u_transposed = transposed_matrix(u, part.group);
      base.has_value() ? multiply(matrix(*base, part), p, u_transposed, y_part) : multiply(p, u_transposed, y_part);
    }
  });
  return y;
}

// The gradient of scale · ⟨g, x Wᵀ⟩ with respect to s and, where there are s and x_gradient, that of x.
Tensor gradients(const Tensor& g, const Tensor& x, const Tensor& u, const Tensor* s, const Tensor& v, double scale,
                 Tensor* x_gradient) {
  const int64_t k = u.size(2);
  const Chunks chunks(x, k);
  const bool is_double = storage_type(x) == surm::StorageType::kFloat64;
  Tensor sums = empty(x, {x.size(0), chunks.count(), k}, is_double ? ScalarType::Double : ScalarType::Float);
  Tensor s_gradient = empty(x, {x.size(0), k});
  chunks.run([&](int64_t begin, int64_t end) {
    const Tensor p_buffer = chunks.buffer(x, k), q_buffer = chunks.buffer(x, k);
    for (int64_t item = begin; item < end; ++item) {
      const Part part = chunks.at(item);
      const Tensor p = matrix(p_buffer, {0, 0, part.rows}), q = matrix(q_buffer, {0, 0, part.rows});
      multiply(matrix(g, part), matrix(u, part.group), p);
      multiply(matrix(x, part), matrix(v, part.group), q);
      char* sum = static_cast<char*>(sums.mutable_data_ptr()) + item * k * sums.element_size();
      meet(p, &q, s != nullptr ? values_of(*s, part.group) : nullptr, scale, sum);
      if (x_gradient != nullptr) multiply(p, transposed_matrix(v, part.group), matrix(*x_gradient, part));
    }
  });
  surm::cpu::instruction_set().diagonal->add_sums(storage_type(x), x.size(0), chunks.count(), k,
                                                  sums.mutable_data_ptr(), scale, s_gradient.mutable_data_ptr());
  return s_gradient;
}

Tensor diagonal_pullback(const Tensor& g, const Tensor& x, const Tensor& u, const Tensor& v, double scale) {
  check_factors(x, u, v);
  check_cotangent(g, x, u);
  return gradients(g, x, u, nullptr, v, scale, nullptr);
}

std::tuple<Tensor, Tensor> diagonal_backward(const Tensor& g, const Tensor& x, const Tensor& u, const Tensor& s_in,
                                             const Tensor& v, double scale) {
  check_factors(x, u, v);
  check_values(s_in, u);
  check_cotangent(g, x, u);
  const Tensor s = made_contiguous(s_in);
  Tensor x_gradient = empty_rows(x, {x.size(0), x.size(1), x.size(2)});
  Tensor s_gradient = gradients(g, x, u, &s, v, scale, &x_gradient);
  return {x_gradient, s_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SURM_NAMESPACE, CPU, m) {
  m.impl("diagonal", SURM_BOX(diagonal));
  m.impl("diagonal_pullback", SURM_BOX(diagonal_pullback));
  m.impl("diagonal_backward", SURM_BOX(diagonal_backward));
}
