// When transforms on the matrix unit serve, and the launches of the product and of its spectrum.
#include <cstdlib>
#include <cstring>

#include "tensor_gradients.cuh"
#include "tensor_launch.cuh"
#include "tensor_product.h"

namespace surm::cuda {
namespace {

// The first device whose matrix unit takes bfloat16, and float16 sixteen columns at a time.
constexpr int kOldestMajor = 8;

bool device_serves() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= kOldestMajor;
}

// At every call, so that the variable may be set at any time.
bool asked_for_float32() {
  const char* precision = std::getenv("SURM_KERNELS_GPU_PRECISION");
  return precision != nullptr && std::strcmp(precision, "float32") == 0;
}

// Whether a multiprocessor has the memory for the blocks that a kernel is planned for, each of which takes 1 KiB more.
bool fits(int64_t shared, int blocks) {
  constexpr int64_t kBeside = 1 << 10;
  return blocks * (shared + kBeside) <= shared_memory_limit() + kBeside;
}

// Whether the matrices of the outer stage are exact enough for float16: those that are filled and plain are.
bool serves_float16(const TensorProduct& product) {
  bool filled = false;
  with_outer_radix(product.length, [&](auto outer) { filled = product.length == decltype(outer)::value * kCore; });
  return filled && !product.twisted;
}

bool aligned(const ConstRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride % 8 == 0;
}

}  // namespace

bool TensorProduct::exists() const {
  bool found = false;
  with_outer_radix(length, [&](auto outer) {
    const bool whole = rows == length && columns == length;
    found = Outer<decltype(outer)::value>::kOnUnit ? rows % 8 == 0 && columns % 8 == 0 : whole;
  });
  return found;
}

bool TensorProduct::serves(ConstRows first, ConstRows second, bool gradient) const {
  if (!exists() || (type == StorageType::kFloat16 && !serves_float16(*this))) return false;
  bool has_room = false;
  if (!with_kernels(type, length, [&](auto outer, auto token) {
        constexpr int kRadix = decltype(outer)::value;
        using Token = decltype(token);
        has_room = gradient ? fits(kGradientsShared<kRadix, Token>, kGradientsBlocks<kRadix>)
                            : fits(kProductShared<kRadix, Token>, kProductBlocks<kRadix>);
      })) {
    return false;
  }
  return tokens > 0 && tokens <= INT32_MAX / 2 && aligned(first) && aligned(second) && device_serves() && has_room &&
         !asked_for_float32();
}

int64_t TensorProduct::spectrum_values() const {
  return exists() ? 2 * length + static_cast<int64_t>(sizeof(TurnPair) / sizeof(float)) : 0;
}

int TensorProduct::matmul(ConstRows x, const void* spectrum, ConstRows base, double scale, void* y,
                          void* stream) const {
  return with_stage(type, length, twisted, [&](auto outer, auto token, auto twist, const OuterStage& stage) {
    constexpr int kRadix = decltype(outer)::value;
    constexpr bool kTwist = decltype(twist)::value;
    using Token = decltype(token);
    const double made_up = scale / (kScaleIn<kRadix, Token> * kScaleOut<kRadix>);
    const TensorProductTask task{tokens_at(x, columns),
                                 tokens_at(base, rows),
                                 static_cast<uint16_t*>(y),
                                 static_cast<int>(rows),
                                 static_cast<int>(tokens),
                                 stage,
                                 static_cast<const TurnPair*>(spectrum),
                                 static_cast<float>(made_up)};
    const auto kernel = base.data != nullptr ? tensor_product<kRadix, Token, true, kTwist>
                                             : tensor_product<kRadix, Token, false, kTwist>;
    const int64_t blocks = blocks_of<kRadix>(tokens, kBlocksWanted / 2 * kProductBlocks<kRadix>);
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), Outer<kRadix>::kThreads, kProductShared<kRadix, Token>,
                  stream, task);
  });
}

double TensorProduct::gradient_scale() const {
  double of_spectrum = 1;
  with_kernels(type, length,
               [&](auto outer, auto token) { of_spectrum = kScaleIn<decltype(outer)::value, decltype(token)>; });
  return of_spectrum * of_spectrum;
}

}  // namespace surm::cuda
