// The launches of gradients by transforms on the matrix unit.
#include "tensor_gradients.cuh"
#include "tensor_launch.cuh"
#include "tensor_product.h"

namespace surm::cuda {

int64_t TensorProduct::chunks() const {
  int64_t blocks = 0;
  with_outer_radix(length, [&](auto outer) { blocks = blocks_of<decltype(outer)::value>(tokens, kBlocksWanted); });
  return blocks;
}

int64_t TensorProduct::sum_bytes() const {
  return exists() ? chunks() * length * static_cast<int64_t>(sizeof(Complex<float>)) : 0;
}

int64_t TensorProduct::flag_bytes() const { return chunks() * static_cast<int64_t>(sizeof(int)); }

int TensorProduct::gradients(ConstRows g, ConstRows x, const void* spectrum, double scale, void* x_gradient, void* sums,
                             int* poisoned, void* stream) const {
  return with_stage(type, length, twisted, [&](auto outer, auto token, auto twist, const OuterStage& stage) {
    constexpr int kRadix = decltype(outer)::value;
    constexpr bool kTwist = decltype(twist)::value;
    using Token = decltype(token);
    const double made_up = scale / (kScaleIn<kRadix, Token> * kScaleOut<kRadix>);
    const TensorGradientsTask task{tokens_at(g, rows),
                                   tokens_at(x, columns),
                                   static_cast<uint16_t*>(x_gradient),
                                   static_cast<int>(tokens),
                                   stage,
                                   static_cast<const TurnPair*>(spectrum),
                                   static_cast<float>(made_up),
                                   static_cast<TurnPair*>(sums),
                                   poisoned};
    const auto kernel = x_gradient != nullptr ? tensor_gradients<kRadix, Token, true, kTwist>
                                              : tensor_gradients<kRadix, Token, false, kTwist>;
    return launch(kernel, dim3(static_cast<unsigned>(chunks())), Outer<kRadix>::kThreads,
                  kGradientsShared<kRadix, Token>, stream, task);
  });
}

}  // namespace surm::cuda
