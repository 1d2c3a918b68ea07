// When transforms on the matrix unit serve, and the launches of the product and of its spectrum.
#include <cstdlib>
#include <cstring>

#include "tensor_gradients.cuh"
#include "tensor_launch.cuh"
#include "tensor_product.h"

namespace surm::cuda {
namespace {

// The first device whose matrix unit takes bfloat16.
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

bool aligned(const ConstRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride % 8 == 0;
}

// The matrices of the way in and out of the core.
constexpr double kCoreScale = static_cast<double>(kMatrixScale) * kMatrixScale;

}  // namespace

bool TensorProduct::exists() const {
  bool found = false;
  with_outer_radix(length, [&](auto outer) {
    const bool whole = rows == length && columns == length;
    found = Outer<decltype(outer)::value>::kOnUnit ? rows % 8 == 0 && columns % 8 == 0 : whole;
  });
  return found;
}

bool TensorProduct::serves(StorageType type, ConstRows first, ConstRows second, bool gradient) const {
  if (!exists()) return false;
  int64_t shared = 0;
  with_outer_radix(length, [&](auto outer) {
    constexpr int kRadix = decltype(outer)::value;
    shared = gradient ? kGradientsShared<kRadix> : kProductShared<kRadix>;
  });
  return type == StorageType::kBFloat16 && tokens > 0 && tokens <= INT32_MAX / 2 && aligned(first) && aligned(second) &&
         device_serves() && shared <= shared_memory_limit() && !asked_for_float32();
}

int64_t TensorProduct::spectrum_values() const {
  return exists() ? 2 * length + static_cast<int64_t>(sizeof(TurnPair) / sizeof(float)) : 0;
}

int TensorProduct::matmul(ConstRows x, const void* spectrum, ConstRows base, double scale, void* y,
                          void* stream) const {
  return with_stage(length, twisted, [&](auto outer, auto twist, const OuterStage& stage) {
    constexpr int kRadix = decltype(outer)::value;
    constexpr bool kTwist = decltype(twist)::value;
    // The matrices of the core on the way in, on the way out, and those of the outer stage.
    const double made_up = scale / (kCoreScale * kCoreScale * kOutScale<kRadix>);
    const TensorProductTask task{tokens_at(x, columns),
                                 tokens_at(base, rows),
                                 static_cast<uint16_t*>(y),
                                 static_cast<int>(rows),
                                 static_cast<int>(tokens),
                                 stage,
                                 static_cast<const TurnPair*>(spectrum),
                                 static_cast<float>(made_up)};
    const auto kernel =
        base.data != nullptr ? tensor_product<kRadix, true, kTwist> : tensor_product<kRadix, false, kTwist>;
    const int64_t blocks = blocks_of<kRadix>(tokens, kBlocksWanted / 2 * kProductBlocks<kRadix>);
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), Outer<kRadix>::kThreads, kProductShared<kRadix>, stream,
                  task);
  });
}

double TensorProduct::gradient_scale() { return kCoreScale * kCoreScale; }

}  // namespace surm::cuda
