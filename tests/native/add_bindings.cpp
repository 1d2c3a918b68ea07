// The smallest module that shows the helper of build.py at work.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(add_bindings, module) {
  module.def("add", [](double a, double b) { return a + b; });
}
