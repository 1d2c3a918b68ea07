// What the glue files share, see glue.h.
#include "glue.h"

#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// In torch from 2.13 on: the message of the last failure on this thread.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace surm::glue {

void raise_in_words_of_torch(const std::exception& error, const Tensor& like) {
  if (torch_exception_get_what_without_backtrace != nullptr) {
    throw std::runtime_error(torch_exception_get_what_without_backtrace());
  }
  const char* words = like.is_cuda() ? "CUDA out of memory. " : "DefaultCPUAllocator: can't allocate memory: ";
  throw std::runtime_error(std::string(words) + error.what());
}

Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, std::optional<ScalarType> type) {
  return in_words_of_torch(like, [&] { return torch::stable::new_empty(like, size, type); });
}

StorageType storage_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return StorageType::kFloat64;
    case ScalarType::Float:
      return StorageType::kFloat32;
    case ScalarType::BFloat16:
      return StorageType::kBFloat16;
    case ScalarType::Half:
      return StorageType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "surm_kernels: dtype must be float64, float32, bfloat16 or float16");
  }
}

Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : made_contiguous(tensor);
}

ConstRows rows_of(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)}; }

void parallel_for(int64_t count, int64_t grain, const surm::cpu::RangeBody& body) {
  if (count <= 0) return;
  if (count <= grain) return body(0, count);
  torch::stable::parallel_for(0, count, grain, body);
}

Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> size) {
  Tensor rows = empty(like, size);
#if defined(__linux__)
  constexpr uintptr_t kLargePage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(rows.mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(rows.numel()) * rows.element_size();
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage, last = end / kLargePage * kLargePage;
  if (first + kLargePage < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return rows;
}

void check_base(const Tensor& base, const Tensor& y) {
  check_tensor(base, "base", y.dim(), y);
  for (int64_t d = 0; d < y.dim(); ++d) check_size("a size of base", base.size(d), y.size(d));
}

Base::Base(const std::optional<Tensor>& base, const Tensor& y) {
  if (!base.has_value()) return;
  check_base(*base, y);
  tensor_ = with_contiguous_rows(*base);
  rows_ = rows_of(tensor_);
}

}  // namespace surm::glue
