// The stages of stages.h for every radix, compiled once per instruction set.
#include "stages.h"

namespace surm::cpu::SURM_INSTRUCTION_SET {

template <int R, bool kInverse, class Scalar>
void run_stage(Complex<Vector<Scalar>>* z, int64_t blocks, int64_t stride, const Vector<Scalar>* twiddles,
               Prefetch& prefetch) {
  for (int64_t block = 0; block < blocks; ++block, z += R * stride) {
    const Vector<Scalar>* w = twiddles;
    for (int64_t j = 0; j < stride; ++j, w += 2 * (R - 1)) {
      Complex<Vector<Scalar>> u[R];
      prefetch.step();
      u[0] = z[j];
      SURM_UNROLL
      for (int k = 1; k < R; ++k) {
        u[k] = z[j + k * stride];
        if (kInverse) u[k] = multiply<true>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
      Butterfly<R, kInverse>::apply(u);
      z[j] = u[0];
      SURM_UNROLL
      for (int k = 1; k < R; ++k) {
        z[j + k * stride] = kInverse ? u[k] : multiply<false>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
    }
  }
}

template <bool kInverse, class Scalar>
void run_generic_stage(int radix, Complex<Vector<Scalar>>* z, int64_t blocks, int64_t stride,
                       const Vector<Scalar>* twiddles, const Scalar* turns, Prefetch& prefetch) {
  for (int64_t block = 0; block < blocks; ++block, z += radix * stride) {
    const Vector<Scalar>* w = twiddles;
    for (int64_t j = 0; j < stride; ++j, w += 2 * (radix - 1)) {
      Complex<Vector<Scalar>> u[kLargestRadix];
      prefetch.step();
      u[0] = z[j];
      for (int k = 1; k < radix; ++k) {
        u[k] = z[j + k * stride];
        if (kInverse) u[k] = multiply<true>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
      generic_odd_butterfly<kInverse, kLargestRadix>(u, radix, turns);
      z[j] = u[0];
      for (int k = 1; k < radix; ++k) {
        z[j + k * stride] = kInverse ? u[k] : multiply<false>(u[k], w[2 * k - 2], w[2 * k - 1]);
      }
    }
  }
}

template <bool kInverse, class Scalar>
void run_stage(const Transform<Scalar>& transform, size_t stage, Complex<Vector<Scalar>>* z, int64_t blocks,
               Prefetch& prefetch) {
  const int radix = transform.plan().stages[stage].radix;
  const int64_t stride = transform.plan().stages[stage].stride / kLanes<Scalar>;
  const Vector<Scalar>* w = transform.twiddles(stage);
  const bool done = with_butterfly(
      radix, [&](auto r) { run_stage<decltype(r)::value, kInverse, Scalar>(z, blocks, stride, w, prefetch); });
  if (!done) run_generic_stage<kInverse>(radix, z, blocks, stride, w, transform.generic_turns(stage), prefetch);
}

template void run_stage<false>(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, Prefetch&);
template void run_stage<true>(const Transform<float>&, size_t, Complex<Vector<float>>*, int64_t, Prefetch&);
template void run_stage<false>(const Transform<double>&, size_t, Complex<Vector<double>>*, int64_t, Prefetch&);
template void run_stage<true>(const Transform<double>&, size_t, Complex<Vector<double>>*, int64_t, Prefetch&);

}  // namespace surm::cpu::SURM_INSTRUCTION_SET
