// The elementwise part of the diagonal product U diag(s) Vᵀ and of its gradients, compiled once per instruction set.
//
// The matrix products before and after are the platform's (csrc/diagonal.cpp). A chunk of their rows lies in cache and
// is walked once, row by row.
#include "chunks.h"
#include "diagonal.h"
#include "masks.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {
namespace {

// sums += a[0] ∘ b[0] + … + a[kRows - 1] ∘ b[kRows - 1]: several rows at once load and round the sums less often.
template <int kRows, class Storage>
void add_products(int64_t k, const Storage* a, const Storage* b, ComputeType<Storage>* sums) {
  using Scalar = ComputeType<Storage>;
  for_vectors<Scalar>(k, [&](int64_t j, int64_t n) {
    Vector<Scalar> sum{};
    for (int row = 0; row < kRows; ++row) sum += load_first(a + row * k + j, n) * load_first(b + row * k + j, n);
    store_first(sums + j, load_first(sums + j, n) + sum, n);
  });
}

template <class Storage>
void sum_products(int64_t tokens, int64_t k, const Storage* a, const Storage* b, ComputeType<Storage>* sums) {
  constexpr int kRows = 8;
  std::fill(sums, sums + k, ComputeType<Storage>{0});
  int64_t t = 0;
  for (; t + kRows <= tokens; t += kRows) add_products<kRows>(k, a + t * k, b + t * k, sums);
  for (; t < tokens; ++t) add_products<1>(k, a + t * k, b + t * k, sums);
}

template <class Storage>
void scale_rows(int64_t tokens, int64_t k, Storage* a, const Storage* s, ComputeType<Storage> scale) {
  using Scalar = ComputeType<Storage>;
  for (int64_t t = 0; t < tokens; ++t, a += k) {
    for_vectors<Scalar>(
        k, [&](int64_t j, int64_t n) { store_first(a + j, load_first(a + j, n) * (load_first(s + j, n) * scale), n); });
  }
}

void meet(StorageType type, int64_t tokens, int64_t k, void* a, const void* b, const void* s, double scale,
          void* sums) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    using Scalar = ComputeType<Storage>;
    Storage* rows = static_cast<Storage*>(a);
    if (sums != nullptr) sum_products(tokens, k, rows, static_cast<const Storage*>(b), static_cast<Scalar*>(sums));
    if (s != nullptr) scale_rows(tokens, k, rows, static_cast<const Storage*>(s), static_cast<Scalar>(scale));
  });
}

template <class Storage>
void add_sums_of_group(int64_t chunks, int64_t k, ComputeType<Storage>* sums, double scale, Storage* gradient) {
  using Scalar = ComputeType<Storage>;
  add_chunks(chunks, [=](int64_t chunk, int64_t other) {
    Scalar *to = sums + chunk * k, *from = sums + other * k;
    for (int64_t j = 0; j < k; ++j) to[j] += from[j];
  });
  for_vectors<Scalar>(k, [&](int64_t j, int64_t n) {
    const Vector<Scalar> sum = chunks > 0 ? load_first(sums + j, n) : Vector<Scalar>{};
    store_first(gradient + j, sum * static_cast<Scalar>(scale), n);
  });
}

void add_sums(StorageType type, int64_t groups, int64_t chunks, int64_t k, void* sums, double scale, void* gradient) {
  with_storage(type, [&](auto tag) {
    using Storage = decltype(tag);
    for (int64_t group = 0; group < groups; ++group) {
      add_sums_of_group(chunks, k, static_cast<ComputeType<Storage>*>(sums) + group * chunks * k, scale,
                        static_cast<Storage*>(gradient) + group * k);
    }
  });
}

}  // namespace

extern const DiagonalKernels diagonal_kernels;
const DiagonalKernels diagonal_kernels{meet, add_sums};

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
