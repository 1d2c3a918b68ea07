// Windows added to another matrix (windows.h) for every pair of types it may have, compiled once per instruction set.
#include <type_traits>

#include "stochastic_rows.h"
#include "windows.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

template <class A, class B>
constexpr bool kSame = std::is_same<A, B>::value;

// Whether Weight and Out are one type, or one of them is float32, and their sum is taken in Scalar.
template <class Scalar, class Weight, class Out>
constexpr bool kMerges = (kSame<Weight, Out> || kSame<Weight, float> || kSame<Out, float>) &&
                         kSame<Scalar, double> == (kSame<Weight, double> || kSame<Out, double>);

// Lanes of Scalar as another type keeps them.
template <class Scalar, class Storage>
using Narrow = Vector<Storage, kLanes<Scalar>>;

// `count` values in the type of the sum, which for float32 may be float64.
template <class Scalar, class Storage>
SURM_INLINE Vector<Scalar> load_wide(const Storage* from, int64_t count) {
  if constexpr (kSame<ComputeType<Storage>, Scalar>) {
    return load_first(from, count);
  } else {
    Narrow<Scalar, Storage> narrow{};
    std::memcpy(&narrow, from, count * sizeof(Storage));
    return __builtin_convertvector(narrow, Vector<Scalar>);
  }
}

template <class Scalar, class Storage>
SURM_INLINE void store_rounded(Storage* to, const Vector<Scalar>& value, int64_t count) {
  if constexpr (kSame<ComputeType<Storage>, Scalar>) {
    store_first(to, value, count);
  } else {
    const auto narrow = __builtin_convertvector(value, Narrow<Scalar, Storage>);
    std::memcpy(to, &narrow, count * sizeof(Storage));
  }
}

// How the sums of a row are stored: to nearest or, as StochasticRow does, by the place of each.
struct NearestRow {
  NearestRow(const uint64_t*, int64_t) {}

  template <class Storage, class Value>
  SURM_INLINE void store(Storage* to, const Value& value, int64_t, int64_t count) const {
    store_rounded<Lane<Value>>(to, value, count);
  }
};

template <class Row, class Scalar, class Weight, class Out>
void add_to(const Windows& windows, const Scalar* diagonals, const Merge& merge, const ParallelFor& parallel) {
  const int64_t columns = windows.columns, length = windows.diagonals();
  parallel(windows.row_blocks * windows.rows, windows_grain(windows.width()), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Scalar* from = diagonals + windows.first_window(row);
      const Weight* weight = static_cast<const Weight*>(merge.weight) + row * merge.weight_stride;
      Out* out = static_cast<Out*>(merge.out) + row * merge.out_stride;
      const Row sums(merge.key, row);
      for (int64_t q = 0; q < windows.column_blocks; ++q, from += length, weight += columns, out += columns) {
        for_vectors<Scalar>(columns, [&](int64_t j, int64_t n) {
          sums.store(out + j, load_wide<Scalar>(weight + j, n) + load_first(from + j, n), q * columns + j, n);
        });
      }
    }
  });
}

}  // namespace

template <class Scalar>
void add_windows(const Windows& windows, const Scalar* diagonals, const Merge& merge, const ParallelFor& parallel) {
  with_storage(merge.weight_type, [&](auto weight_tag) {
    using Weight = decltype(weight_tag);
    with_storage(merge.out_type, [&](auto out_tag) {
      using Out = decltype(out_tag);
      if constexpr (kMerges<Scalar, Weight, Out>) {
        if constexpr (sizeof(Out) == 2) {
          if (merge.key != nullptr)
            return add_to<StochasticRow, Scalar, Weight, Out>(windows, diagonals, merge, parallel);
        }
        add_to<NearestRow, Scalar, Weight, Out>(windows, diagonals, merge, parallel);
      }
    });
  });
}

template void add_windows(const Windows&, const float*, const Merge&, const ParallelFor&);
template void add_windows(const Windows&, const double*, const Merge&, const ParallelFor&);

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
