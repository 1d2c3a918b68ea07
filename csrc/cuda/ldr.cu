// Low displacement rank products and their gradients on CUDA: sizes of blocks of threads and of workspace, launches.
//
// As on the CPU, generators become circulants (plan/block_kinds.h), and multiplying by the reversal J costs nothing:
// J = S^(n-1) R with the shift S, which goes into the layout of right_l, and the reflection R, which is a conjugation
// of the spectrum of x.
#include "geometry.cuh"
#include "ldr.cuh"
#include "ldr.h"

namespace surm::cuda {
namespace {

template <class Scalar>
class LdrMachine {
  using C = Complex<Scalar>;

 public:
  LdrMachine(StorageType type, const LdrShape& shape)
      : type_(type),
        shape_(shape),
        length_(plan_length(shape.size, false)),
        twisted_(length_ == shape.size),
        spectra_bytes_(shape.groups * shape.rank * length_ * static_cast<int64_t>(sizeof(C))) {}

  int64_t shared(bool gradient) const { return shared_of(1, gradient, false); }

  int64_t workspace_bytes(bool gradient) const {
    const Blocks how(*this, gradient);
    return (gradient ? 4 : 2) * spectra_bytes_ + how.kept_bytes + how.sum_bytes + how.flag_bytes;
  }

  int matmul(ConstRows x, const void* left, const void* right, ConstRows base, double scale, void* y, void* workspace,
             void* stream) const {
    const int64_t in_size = shape_.transposed ? shape_.out_size : shape_.in_size;
    const int64_t out_size = shape_.transposed ? shape_.in_size : shape_.out_size;
    const Blocks how(*this, false);
    LdrProductTask<Scalar> task;
    const int error = prepare(how, left, right, workspace, stream, &task);
    if (error != 0) return error;
    task.x = Rows(x, type_, 1, in_size);
    task.to = store(task.plan, y, base, scale, out_size, shape_.transposed);
    task.transposed = shape_.transposed;
    return launch(how.near ? ldr_product<Scalar, true> : ldr_product<Scalar, false>, grid(how), how.geometry.threads,
                  how.shared, stream, task);
  }

  int backward(ConstRows g, ConstRows x, const void* left, const void* right, double scale, void* x_gradient,
               void* left_gradient, void* right_gradient, void* workspace, void* stream) const {
    const Blocks how(*this, true);
    LdrBackwardTask<Scalar> task;
    int error = prepare(how, left, right, workspace, stream, &task);
    if (error != 0) return error;
    char* memory = static_cast<char*>(workspace) + 2 * spectra_bytes_ + how.kept_bytes;
    C* totals = reinterpret_cast<C*>(memory);
    C* left_sums = reinterpret_cast<C*>(memory + 2 * spectra_bytes_);
    C* right_sums = reinterpret_cast<C*>(memory + 2 * spectra_bytes_ + how.sum_bytes / 2);
    task.poisoned = reinterpret_cast<int*>(memory + 2 * spectra_bytes_ + how.sum_bytes);
    task.g = Rows(g, type_, 1, shape_.out_size);
    task.x = Rows(x, type_, 1, shape_.in_size);
    task.to = store(task.plan, x_gradient, {}, scale, shape_.in_size, true);
    task.left_sums = left_gradient != nullptr ? left_sums : nullptr;
    task.right_sums = right_gradient != nullptr ? right_sums : nullptr;
    if (shape_.tokens > 0) {
      error = launch(how.near ? ldr_backward<Scalar, true> : ldr_backward<Scalar, false>, grid(how),
                     how.geometry.threads, how.shared, stream, task);
      if (error != 0) return error;
    }
    const int chunks = shape_.tokens > 0 ? static_cast<int>(how.chunks) : 0;
    const auto finish = [&](bool is_right, const C* sums, void* gradient) {
      if (gradient == nullptr || spectra_bytes_ == 0) return 0;
      const PartialSums partial{sums, totals, task.poisoned, chunks, how.geometry.pairs};
      return generators(is_right).finish_gradients(partial, parameters(is_right), scale, gradient, stream);
    };
    error = finish(false, left_sums, left_gradient);
    return error != 0 ? error : finish(true, right_sums, right_gradient);
  }

 private:
  // How the tokens are cut, and the workspace for what blocks of threads keep.
  struct Blocks {
    bool near;
    Geometry<Scalar> geometry;
    int64_t shared, chunks, units_of_chunk;  // chunks: of a group, a block of threads each
    int64_t kept_bytes, sum_bytes, flag_bytes;

    Blocks(const LdrMachine& m, bool gradient)
        : near(m.shared_of(1, gradient, true) <= shared_memory_limit()),
          geometry(m.shape_.tokens, m.length_, 1, kOneTile,
                   [&](int64_t pairs) { return m.shared_of(pairs, gradient, near); }),
          shared(m.shared_of(geometry.pairs, gradient, near)) {
      const int64_t count = geometry.pairs * m.length_, bytes = sizeof(C);
      const int64_t kept = near ? 0 : (gradient ? 3 * count : 2 * warped_count(count)) * bytes;
      const int64_t sum = gradient ? 2 * m.shape_.rank * count * bytes : 0;
      const Chunks share(geometry, m.shape_.groups, kept + sum);
      // A product whose blocks of threads keep nothing has no reason to give them more than one unit.
      const bool shared_out = gradient || !near;
      chunks = shared_out ? share.chunks : std::max<int64_t>(1, geometry.units);
      units_of_chunk = shared_out ? share.units_of_chunk : 1;
      const int64_t blocks = m.shape_.groups * chunks;
      kept_bytes = blocks * kept;
      sum_bytes = blocks * sum;
      flag_bytes = gradient ? blocks * static_cast<int64_t>(sizeof(int)) : 0;
    }
  };

  dim3 grid(const Blocks& how) const { return dim3(static_cast<unsigned>(shape_.groups * how.chunks)); }

  int64_t shared_of(int64_t pairs, bool gradient, bool near) const {
    const int64_t rows = near ? (gradient ? 4 : 3) : 1;
    return rows * row_bytes<Scalar>(pairs, length_) + (gradient ? 2 : 1) * scale_bytes<Scalar>(pairs);
  }

  // The generators as a column of blocks: those of Z_1(left), or of Z_-1(right).
  SpectralProduct generators(bool is_right) const {
    const int64_t n = shape_.size;
    return {type_, {shape_.groups, shape_.tokens, shape_.rank, 1, n, n, is_right && twisted_, false}, n, false};
  }

  // How a generator lies in the first column of its circulant.
  Parameters parameters(bool is_right) const { return {type_, generator_column(shape_, length_, is_right), false}; }

  // Makes the spectra of the generators that are there, at the start of the workspace, and fills in what all tasks
  // have.
  int prepare(const Blocks& how, const void* left, const void* right, void* workspace, void* stream,
              LdrTask<Scalar>* task) const {
    int error = 0;
    const DevicePlan<Scalar>* plan = device_plan<Scalar>(shape_.size, false, &error);
    if (plan == nullptr) return error;
    if (how.shared > shared_memory_limit()) return kTooLarge;
    if (shape_.groups * how.chunks > INT32_MAX || shape_.tokens > INT32_MAX / 2) return cudaErrorInvalidValue;
    char* memory = static_cast<char*>(workspace);
    for (const bool is_right : {false, true}) {
      const void* generator = is_right ? right : left;
      if (generator == nullptr || spectra_bytes_ == 0) continue;
      error = generators(is_right).make_spectra(parameters(is_right), generator,
                                                memory + (is_right ? spectra_bytes_ : 0), stream);
      if (error != 0) return error;
    }
    task->plan = *plan;
    task->units = units_of(shape_.tokens, how.geometry, how.chunks, how.units_of_chunk);
    task->by_tiles = Divisor(tiles_of(static_cast<int>(length_)));
    task->rank = static_cast<int>(shape_.rank);
    task->twisted = twisted_;
    task->reflected = shape_.reflected;
    task->left = reinterpret_cast<const C*>(memory);
    task->right = reinterpret_cast<const C*>(memory + spectra_bytes_);
    task->kept = reinterpret_cast<C*>(memory + 2 * spectra_bytes_);
    return 0;
  }

  // `of_x`: rows come out of the domain of Z_-1.
  Store<Scalar> store(const DevicePlan<Scalar>& plan, void* rows, ConstRows base, double scale, int64_t size,
                      bool of_x) const {
    return {result_rows(rows, type_, shape_.tokens, 1, size), Rows(base, type_, 1, size), static_cast<Scalar>(scale),
            of_x && shape_.reflected, of_x && twisted_ ? plan.twist : nullptr};
  }

  StorageType type_;
  LdrShape shape_;
  int64_t length_;  // N
  bool twisted_;    // else embedded
  int64_t spectra_bytes_;
};

template <class Body>
auto with_machine(StorageType type, const LdrShape& shape, const Body& body) {
  return type == StorageType::kFloat64 ? body(LdrMachine<double>(type, shape)) : body(LdrMachine<float>(type, shape));
}

}  // namespace
}  // namespace surm::cuda

using surm::ConstRows;
using surm::LdrShape;
using surm::StorageType;
using surm::cuda::with_machine;

extern "C" {

int64_t surm_cuda_ldr_workspace_bytes(StorageType type, const LdrShape* shape, bool gradient) {
  return with_machine(type, *shape, [&](const auto& machine) { return machine.workspace_bytes(gradient); });
}

int64_t surm_cuda_ldr_shared_bytes(StorageType type, const LdrShape* shape, bool gradient) {
  return with_machine(type, *shape, [&](const auto& machine) { return machine.shared(gradient); });
}

int surm_cuda_ldr_matmul(StorageType type, const LdrShape* shape, ConstRows x, const void* left, const void* right,
                         ConstRows base, double scale, void* y, void* workspace, void* stream) {
  return with_machine(type, *shape, [&](const auto& machine) {
    return machine.matmul(x, left, right, base, scale, y, workspace, stream);
  });
}

int surm_cuda_ldr_backward(StorageType type, const LdrShape* shape, ConstRows g, ConstRows x, const void* left,
                           const void* right, double scale, void* x_gradient, void* left_gradient, void* right_gradient,
                           void* workspace, void* stream) {
  return with_machine(type, *shape, [&](const auto& machine) {
    return machine.backward(g, x, left, right, scale, x_gradient, left_gradient, right_gradient, workspace, stream);
  });
}
}
