// Checks and allocation that the glue files share. The public functions have already checked what a user passes; these
// keep a direct call of a private operator from reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>

#include "cpu/interface.h"

namespace surm::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] void raise_in_words_of_torch(const std::exception& error, const Tensor& like);

inline void check_device(const Tensor& tensor, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
                  "surm_kernels: ", name, " is on another device than the rest");
}

inline void check_tensor(const Tensor& tensor, const char* name, int64_t dimensions, const Tensor& like) {
  STD_TORCH_CHECK(tensor.dim() == dimensions, "surm_kernels: ", name, " must have ", dimensions, " dimensions, got ",
                  tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "surm_kernels: ", name,
                  " has another dtype than the rest");
  check_device(tensor, name, like);
}

inline void check_size(const char* what, int64_t got, int64_t wanted) {
  STD_TORCH_CHECK(got == wanted, "surm_kernels: ", what, " must be ", wanted, ", got ", got);
}

// Calls torch for a tensor like this one, which can only fail for want of memory. The stable ABI says no more than
// which call failed; what is raised has torch's own words, which users and their tools know.
template <class Call>
auto in_words_of_torch(const Tensor& like, const Call& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    raise_in_words_of_torch(error, like);
  }
}

// An operator that says in the words of torch's allocator that it found no memory to work in.
template <auto kOperator>
struct Guarded;
template <class Result, class... Arguments, Result (*kOperator)(Arguments...)>
struct Guarded<kOperator> {
  static Result call(Arguments... arguments) {
    try {
      return kOperator(arguments...);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error("surm_kernels: DefaultCPUAllocator: can't allocate memory that an operator works in");
    }
  }
};
#define SURM_BOX(...) TORCH_BOX((&surm::glue::Guarded<&__VA_ARGS__>::call))

// Memory like another tensor's, of its type or of another.
Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, std::optional<ScalarType> type = std::nullopt);

inline Tensor made_contiguous(const Tensor& tensor) {
  return in_words_of_torch(tensor, [&] { return torch::stable::contiguous(tensor); });
}

surm::StorageType storage_type(const Tensor& tensor);

// Rows as the kernels read them: values of a row side by side, any stride between rows and groups.
Tensor with_contiguous_rows(const Tensor& tensor);

// The rows of a tensor (groups, tokens, width).
surm::ConstRows rows_of(const Tensor& tensor);

// A base is like the output y that it is added to.
void check_base(const Tensor& base, const Tensor& y);

// A base of the size of y, checked and with contiguous rows; undefined if there is none.
class Base {
 public:
  Base(const std::optional<Tensor>& base, const Tensor& y);
  surm::ConstRows rows() const { return rows_; }

 private:
  Tensor tensor_;
  surm::ConstRows rows_;
};

void parallel_for(int64_t count, int64_t grain, const surm::cpu::RangeBody& body);

// An output of the size of the tokens. Where it is fresh memory, faulting it in 4 KiB at a time costs more than the
// product that fills it, so the kernel is asked for large pages; on recycled memory the call does nothing.
Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> size);

}  // namespace surm::glue
