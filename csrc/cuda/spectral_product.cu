// Sizes of blocks of threads and of workspace for the kernels of spectral_product.cuh, and their launches.
#include <algorithm>

#include "geometry.cuh"

namespace surm::cuda {
namespace {

// Whether the sums of a single block may be in shared memory; in float64 that kernel does not fit the registers.
template <class Scalar>
constexpr bool kMayBeNear = sizeof(Scalar) == 4;

template <class Scalar>
class Machine {
  using C = Complex<Scalar>;

 public:
  explicit Machine(const SpectralProduct& product)
      : type_(product.type),
        shape_(product.shape),
        size_(product.size),
        padded_(product.padded),
        length_(plan_length(product.size, product.padded)),
        single_(shape_.blocks_of_group() == 1) {}

  int64_t matmul_shared(int64_t pairs) const {
    const int64_t rows = single_
                             ? row_bytes<Scalar>(pairs, length_)
                             : row_bytes<Scalar>(pairs * shape_.columns, length_) + row_bytes<Scalar>(pairs, length_);
    return rows + scale_bytes<Scalar>(pairs);
  }

  int64_t backward_shared(int64_t pairs, bool near) const {
    const int64_t most = std::max(shape_.rows, shape_.columns);
    const int64_t rows = single_ ? (near ? 3 : 1) * row_bytes<Scalar>(pairs, length_)
                                 : row_bytes<Scalar>(pairs * most, length_) + row_bytes<Scalar>(pairs, length_);
    return rows + 2 * scale_bytes<Scalar>(pairs);
  }

  int64_t spectra_values() const { return 2 * shape_.all_blocks() * length_; }

  int64_t workspace_bytes() const { return Backward(*this).bytes(); }

  int make_spectra(const Parameters& parameters, const void* values, void* spectra, void* stream) const {
    int error = 0;
    ParameterTask<Scalar> task = parameter_task(parameters, &error);
    if (error != 0) return error;
    task.parameter = const_cast<void*>(values);
    task.spectra = static_cast<C*>(spectra);
    task.scale = Scalar{1} / static_cast<Scalar>(length_);
    return launch_for_parameters(parameter_spectra<Scalar>, task, stream);
  }

  int matmul(ConstRows x, const void* spectra, ConstRows base, double scale, void* y, void* stream) const {
    int error = 0;
    const DevicePlan<Scalar>* plan = device_plan<Scalar>(size_, padded_, &error);
    if (plan == nullptr) return error;
    const Geometry<Scalar> how(shape_.tokens, length_, shape_.columns, kTwoTiles,
                               [&](int64_t pairs) { return matmul_shared(pairs); });
    const int64_t shared = matmul_shared(how.pairs);
    if (shared > shared_memory_limit()) return kTooLarge;

    ProductTask<Scalar> task;
    task.plan = *plan;
    task.units = units_of(shape_.tokens, how, how.units, 1);
    task.x = Rows(x, type_, shape_.columns, shape_.in_size);
    task.to = store(y, base, scale, shape_.rows, shape_.out_size, *plan, false);
    task.factors = static_cast<const C*>(spectra);
    task.by_tiles = Divisor(how.tiles);
    task.by_columns = Divisor(shape_.columns);
    task.rows = static_cast<int>(shape_.rows);
    const int64_t blocks = shape_.groups * how.units;
    if (blocks > INT32_MAX || shape_.tokens > INT32_MAX / 2) return cudaErrorInvalidValue;
    // Few tokens are spread over blocks of threads with a part of the rows of the grid each.
    const int64_t parts =
        std::min<int64_t>(shape_.rows, std::min<int64_t>(UINT16_MAX, divide_up(kBlocksWanted, blocks)));
    task.rows_of_block = static_cast<int>(divide_up(shape_.rows, parts));
    task.twisted = shape_.twisted;
    task.conjugate = shape_.reflected;
    const dim3 grid(static_cast<unsigned>(blocks),
                    static_cast<unsigned>(single_ ? 1 : divide_up(shape_.rows, task.rows_of_block)));
    return launch(single_ ? spectral_product<Scalar> : spectral_product_grid<Scalar>, grid, how.threads, shared, stream,
                  task);
  }

  int backward(ConstRows g, ConstRows x, const Parameters& transposed_blocks, const void* values, double scale,
               void* x_gradient, const Parameters& parameters, void* gradients, void* workspace, void* stream) const {
    int error = 0;
    const DevicePlan<Scalar>* plan = device_plan<Scalar>(size_, padded_, &error);
    if (plan == nullptr) return error;
    const Backward how(*this);
    if (how.shared > shared_memory_limit()) return kTooLarge;
    if (shape_.groups * how.chunks > INT32_MAX || shape_.tokens > INT32_MAX / 2) return cudaErrorInvalidValue;
    char* memory = static_cast<char*>(workspace);
    C* factors = reinterpret_cast<C*>(memory);
    C* totals = reinterpret_cast<C*>(memory + how.factor_bytes);
    C* sums = reinterpret_cast<C*>(memory + 2 * how.factor_bytes);
    C* kept = reinterpret_cast<C*>(memory + 2 * how.factor_bytes + how.sum_bytes);
    int* poisoned = reinterpret_cast<int*>(memory + 2 * how.factor_bytes + how.sum_bytes + how.kept_bytes);

    if (x_gradient != nullptr) {
      error = transposed().make_spectra(transposed_blocks, values, factors, stream);
      if (error != 0) return error;
    }
    if (shape_.tokens > 0) {
      BackwardTask<Scalar> task;
      task.plan = *plan;
      task.units = units_of(shape_.tokens, how.geometry, how.chunks, how.units_of_chunk);
      task.g = Rows(g, type_, shape_.rows, shape_.out_size);
      task.x = Rows(x, type_, shape_.columns, shape_.in_size);
      task.to = store(x_gradient, {}, scale, shape_.columns, shape_.in_size, *plan, shape_.reflected);
      task.factors = factors;
      task.kept = kept;
      task.sums = sums;
      task.poisoned = poisoned;
      task.by_tiles = Divisor(how.geometry.tiles);
      task.by_rows = Divisor(shape_.rows);
      task.by_columns = Divisor(shape_.columns);
      task.twisted = shape_.twisted;
      task.conjugate = shape_.reflected;
      auto kernel = single_ ? spectral_backward<Scalar, false> : spectral_backward_grid<Scalar>;
      if constexpr (kMayBeNear<Scalar>) kernel = how.near ? spectral_backward<Scalar, true> : kernel;
      error = launch(kernel, dim3(static_cast<unsigned>(shape_.groups * how.chunks)), how.geometry.threads, how.shared,
                     stream, task);
      if (error != 0) return error;
    }
    const int chunks = shape_.tokens > 0 ? static_cast<int>(how.chunks) : 0;
    const PartialSums partial{sums, totals, poisoned, chunks, single_ ? how.geometry.pairs : 1};
    return finish(partial, parameters, scale, gradients, stream);
  }

  int finish(const PartialSums& partial, const Parameters& parameters, double scale, void* gradients,
             void* stream) const {
    int error = 0;
    ParameterTask<Scalar> task = parameter_task(parameters, &error);
    if (error != 0) return error;
    if (partial.tensor) {
      if constexpr (sizeof(Scalar) == sizeof(float)) error = add_up(partial, TensorOrder(task.plan), stream);
    } else {
      error = add_up(partial, SameOrder{}, stream);
    }
    if (error != 0) return error;
    task.parameter = gradients;
    task.spectra = static_cast<C*>(partial.totals);
    task.poisoned = partial.poisoned;
    task.chunks = partial.chunks;
    task.scale = static_cast<Scalar>(scale / static_cast<double>(length_));
    return launch_for_parameters(parameter_gradients<Scalar>, task, stream);
  }

 private:
  // How the sum over tokens is cut, and the workspace for it.
  struct Backward {
    bool near;
    Geometry<Scalar> geometry;
    int64_t shared, chunks, units_of_chunk;                   // chunks: of a group
    int64_t factor_bytes, sum_bytes, kept_bytes, flag_bytes;  // of workspace

    explicit Backward(const Machine& m)
        : near(kMayBeNear<Scalar> && m.single_ && m.backward_shared(1, true) <= shared_memory_limit()),
          geometry(m.shape_.tokens, m.length_, std::max(m.shape_.rows, m.shape_.columns), kOneTile,
                   [&](int64_t pairs) { return m.backward_shared(pairs, near); }),
          shared(m.backward_shared(geometry.pairs, near)) {
      constexpr int64_t kBytes = sizeof(C);
      const int64_t row = geometry.pairs * m.length_;
      const int64_t sum = (m.single_ ? row : m.shape_.blocks_of_group() * m.length_) * kBytes;
      const Chunks share(geometry, m.shape_.groups, sum);
      chunks = share.chunks;
      units_of_chunk = share.units_of_chunk;
      factor_bytes = m.shape_.all_blocks() * m.length_ * kBytes;
      sum_bytes = m.shape_.groups * chunks * sum;
      kept_bytes = near ? 0 : m.shape_.groups * chunks * m.shape_.rows * row * kBytes;
      flag_bytes = m.shape_.groups * chunks * static_cast<int64_t>(sizeof(int));
    }

    int64_t bytes() const { return 2 * factor_bytes + sum_bytes + kept_bytes + flag_bytes; }
  };

  template <class Order>
  int add_up(const PartialSums& partial, const Order& order, void* stream) const {
    const SumTask<Scalar, Order> task{static_cast<const C*>(partial.sums),
                                      static_cast<C*>(partial.totals),
                                      partial.chunks,
                                      partial.pairs,
                                      static_cast<int>(length_ / kTile),
                                      shape_.blocks_of_group(),
                                      shape_.all_blocks() * length_,
                                      order};
    return launch(sum_partials<Scalar, Order>, dim3(static_cast<unsigned>(divide_up(task.count, kWarp))), kSumThreads,
                  kSumThreads * static_cast<int64_t>(sizeof(C)), stream, task);
  }

  // The transposed grid, whose spectra make x's gradient.
  Machine transposed() const {
    Machine machine = *this;
    std::swap(machine.shape_.rows, machine.shape_.columns);
    return machine;
  }

  Store<Scalar> store(void* rows, ConstRows base, double scale, int64_t blocks, int64_t size,
                      const DevicePlan<Scalar>& plan, bool conjugate) const {
    return {result_rows(rows, type_, shape_.tokens, blocks, size), Rows(base, type_, blocks, size),
            static_cast<Scalar>(scale), conjugate, shape_.twisted ? plan.twist : nullptr};
  }

  ParameterTask<Scalar> parameter_task(const Parameters& parameters, int* error) const {
    ParameterTask<Scalar> task;
    const DevicePlan<Scalar>* plan = device_plan<Scalar>(size_, padded_, error);
    if (plan == nullptr) return task;
    task.plan = *plan;
    task.layout = parameters.layout;
    task.type = parameters.type;
    task.rows = static_cast<int>(shape_.rows);
    task.columns = static_cast<int>(shape_.columns);
    task.transposed = parameters.transposed;
    task.twisted = shape_.twisted;
    return task;
  }

  int launch_for_parameters(void (*kernel)(const ParameterTask<Scalar>), const ParameterTask<Scalar>& task,
                            void* stream) const {
    const int64_t shared = row_bytes<Scalar>(1, length_), blocks = shape_.all_blocks();
    if (shared > shared_memory_limit()) return kTooLarge;
    if (blocks > INT32_MAX || shape_.tokens > INT32_MAX / 2) return cudaErrorInvalidValue;
    const int64_t threads = std::max(kFewestThreads, power_of_two_from(length_ / kTile));
    return launch(kernel, dim3(static_cast<unsigned>(blocks)),
                  static_cast<int>(std::min<int64_t>(kMostThreads<Scalar>, threads)), shared, stream, task);
  }

  StorageType type_;
  SpectralShape shape_;
  int64_t size_;
  bool padded_;
  int64_t length_;  // N
  bool single_;     // one block, whose product needs no second row in shared memory
};

template <class Body>
auto with_machine(const SpectralProduct& product, const Body& body) {
  return product.type == StorageType::kFloat64 ? body(Machine<double>(product)) : body(Machine<float>(product));
}

}  // namespace

int64_t SpectralProduct::matmul_shared_bytes() const {
  return with_machine(*this, [](const auto& machine) { return machine.matmul_shared(1); });
}

int64_t SpectralProduct::backward_shared_bytes() const {
  return with_machine(*this, [](const auto& machine) { return machine.backward_shared(1, false); });
}

int64_t SpectralProduct::spectra_values() const {
  return with_machine(*this, [](const auto& machine) { return machine.spectra_values(); });
}

int64_t SpectralProduct::spectra_bytes() const {
  return spectra_values() * static_cast<int64_t>(type == StorageType::kFloat64 ? sizeof(double) : sizeof(float));
}

int64_t SpectralProduct::backward_workspace_bytes() const {
  return with_machine(*this, [](const auto& machine) { return machine.workspace_bytes(); });
}

int SpectralProduct::make_spectra(const Parameters& parameters, const void* values, void* spectra, void* stream) const {
  return with_machine(*this,
                      [&](const auto& machine) { return machine.make_spectra(parameters, values, spectra, stream); });
}

int SpectralProduct::matmul(ConstRows x, const void* spectra, ConstRows base, double scale, void* y,
                            void* stream) const {
  return with_machine(*this, [&](const auto& machine) { return machine.matmul(x, spectra, base, scale, y, stream); });
}

int SpectralProduct::backward(ConstRows g, ConstRows x, const Parameters& transposed_blocks, const void* values,
                              double scale, void* x_gradient, const Parameters& parameters, void* gradients,
                              void* workspace, void* stream) const {
  return with_machine(*this, [&](const auto& machine) {
    return machine.backward(g, x, transposed_blocks, values, scale, x_gradient, parameters, gradients, workspace,
                            stream);
  });
}

int SpectralProduct::finish_gradients(const PartialSums& partial, const Parameters& parameters, double scale,
                                      void* gradients, void* stream) const {
  return with_machine(
      *this, [&](const auto& machine) { return machine.finish(partial, parameters, scale, gradients, stream); });
}

}  // namespace surm::cuda
