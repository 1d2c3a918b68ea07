// The sum of two matrices rounded stochastically, and the keys of rounding, compiled once per instruction set.
#include "masks.h"
#include "stochastic.h"
#include "stochastic_rows.h"
#include "windows.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class Weight, class Addend, class Out>
void sum_rows(int64_t rows, int64_t columns, const Merge& merge, const void* addend, int64_t addend_stride,
              const ParallelFor& parallel) {
  parallel(rows, windows_grain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Weight* weight = static_cast<const Weight*>(merge.weight) + row * merge.weight_stride;
      const Addend* from = static_cast<const Addend*>(addend) + row * addend_stride;
      Out* out = static_cast<Out*>(merge.out) + row * merge.out_stride;
      const StochasticRow sums(merge.key, row);
      for_vectors<float>(columns, [&](int64_t j, int64_t n) {
        sums.store(out + j, load_first(weight + j, n) + load_first(from + j, n), j, n);
      });
    }
  });
}

void sum(int64_t rows, int64_t columns, const Merge& merge, const void* addend, int64_t addend_stride, bool wide,
         const ParallelFor& parallel) {
  with_storage(merge.out_type, [&](auto out_tag) {
    using Out = decltype(out_tag);
    if constexpr (sizeof(Out) == 2) {
      const auto run = [&](auto weight_tag) {
        using Weight = decltype(weight_tag);
        wide ? sum_rows<Weight, float, Out>(rows, columns, merge, addend, addend_stride, parallel)
             : sum_rows<Weight, Out, Out>(rows, columns, merge, addend, addend_stride, parallel);
      };
      merge.weight_type == StorageType::kFloat32 ? run(float{}) : run(Out{});
    }
  });
}

template <class Bits>
uint64_t hash_of(const Numbers& numbers, uint64_t place) {
  const auto* bits = static_cast<const Bits*>(numbers.data);
  uint64_t sum = 0;
  for (int64_t i = 0; i < numbers.count; ++i) sum += hash_of_number(bits[i], place + i);
  return sum;
}

uint64_t key(const Numbers* numbers, int count, uint64_t seed) {
  uint64_t sum = 0, place = 0;
  for (const Numbers* each = numbers; each < numbers + count; place += each->count, ++each) {
    sum += each->bytes == 8   ? hash_of<int64_t>(*each, place)
           : each->bytes == 4 ? hash_of<int32_t>(*each, place)
                              : hash_of<int16_t>(*each, place);
  }
  return key_of(seed, sum);
}

}  // namespace

extern const StochasticKernels stochastic_kernels;
const StochasticKernels stochastic_kernels{sum, key};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
