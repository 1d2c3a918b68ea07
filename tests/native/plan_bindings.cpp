// Lets the tests look into the plan of a size and run single butterflies.
#include <pybind11/complex.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <complex>
#include <stdexcept>

#include "butterflies.h"
#include "plan/plan.h"

namespace {

using Values = std::vector<std::complex<double>>;

template <int R, bool kInverse>
Values apply(const Values& values) {
  surm::Complex<double> u[R];
  for (int k = 0; k < R; ++k) u[k] = {values[k].real(), values[k].imag()};
  surm::Butterfly<R, kInverse>::apply(u);
  Values result;
  for (int k = 0; k < R; ++k) result.emplace_back(u[k].re, u[k].im);
  return result;
}

template <bool kInverse>
Values apply_generic(const Values& values) {
  const int radix = static_cast<int>(values.size());
  surm::Complex<double> u[surm::kLargestRadix];
  const std::vector<double> turns = surm::odd_butterfly_turns<double>(radix);
  for (int k = 0; k < radix; ++k) u[k] = {values[k].real(), values[k].imag()};
  surm::generic_odd_butterfly<kInverse, surm::kLargestRadix>(u, radix, turns.data());
  Values result;
  for (int k = 0; k < radix; ++k) result.emplace_back(u[k].re, u[k].im);
  return result;
}

template <bool kInverse>
Values butterfly(const Values& values) {
  switch (values.size()) {
    case 2:
      return apply<2, kInverse>(values);
    case 3:
      return apply<3, kInverse>(values);
    case 4:
      return apply<4, kInverse>(values);
    case 5:
      return apply<5, kInverse>(values);
    case 6:
      return apply<6, kInverse>(values);
    case 7:
      return apply<7, kInverse>(values);
    case 8:
      return apply<8, kInverse>(values);
    case 9:
      return apply<9, kInverse>(values);
    case 11:
      return apply<11, kInverse>(values);
    case 12:
      return apply<12, kInverse>(values);
    case 13:
      return apply<13, kInverse>(values);
    case 16:
      return apply<16, kInverse>(values);
    default:
      return apply_generic<kInverse>(values);
  }
}

}  // namespace

PYBIND11_MODULE(plan_bindings, m) {
  pybind11::class_<surm::Stage>(m, "Stage")
      .def_readonly("radix", &surm::Stage::radix)
      .def_readonly("stride", &surm::Stage::stride);
  pybind11::class_<surm::Plan>(m, "Plan")
      .def(pybind11::init([](int64_t size, int tile) { return surm::make_plan(size, tile); }))
      .def_static("padded", [](int64_t size, int tile) { return surm::make_padded_plan(size, tile); })
      .def_static("for_gpu", [](int64_t size, int tile) { return surm::make_plan(size, tile, surm::kGpuStages); })
      .def_static("padded_for_gpu",
                  [](int64_t size, int tile) { return surm::make_padded_plan(size, tile, surm::kGpuStages); })
      .def_readonly("size", &surm::Plan::size)
      .def_readonly("length", &surm::Plan::length)
      .def_readonly("tile", &surm::Plan::tile)
      .def_readonly("stages", &surm::Plan::stages)
      .def_property_readonly("embedded", &surm::Plan::embedded)
      .def("spectrum_order", &surm::spectrum_order)
      .def("twiddle_factors", &surm::twiddle_factors<double>);
  m.def("has_butterfly", &surm::has_butterfly);
  m.def("butterfly", [](const Values& values, bool inverse) {
    return inverse ? butterfly<true>(values) : butterfly<false>(values);
  });
  m.attr("largest_radix") = surm::kLargestRadix;
}
