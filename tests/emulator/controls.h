// What a test sets and sees of the emulator: each module built from kernels has one of its own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator.h"

namespace surm::emulator {

inline void bind_controls(pybind11::module_& m) {
  pybind11::register_local_exception<Error>(m, "Error", PyExc_RuntimeError);
  pybind11::class_<Launch>(m, "Launch", pybind11::module_local())
      .def_readonly("threads", &Launch::threads)
      .def_readonly("shared_bytes", &Launch::shared_bytes)
      .def_readonly("barriers", &Launch::barriers)
      .def_property_readonly("grid", [](const Launch& launch) {
        return pybind11::make_tuple(launch.grid.x, launch.grid.y, launch.grid.z);
      });
  m.def("set_seed", [](unsigned value) { seed = value; });
  m.def("set_device", [](int number) {
    if (cudaSetDevice(number) != cudaSuccess) throw pybind11::value_error("no such device");
  });
  m.def("set_capturing", [](bool value) { capturing = value; });
  m.def("refuses_allocations", &refused);
  m.def("allocations", [] { return allocations; });
  m.def("fail_next_allocation", [] { next_allocation = cudaErrorMemoryAllocation; });
  m.def("fail_next_launch", [] { next_launch = cudaErrorInvalidConfiguration; });
  m.def("fail_earlier", [] { last_error = cudaErrorMemoryAllocation; });
  m.def("last_error", [] { return cudaGetErrorString(last_error); });
  m.def("grants", [] {
    pybind11::list all;
    for (const Grant& each : grants) {
      all.append(pybind11::make_tuple(reinterpret_cast<uintptr_t>(each.kernel), each.device, each.bytes));
    }
    return all;
  });
  m.def("take_launches", [] {
    std::vector<Launch> taken;
    taken.swap(launches);
    return taken;
  });
  m.attr("shared_bytes_of_devices") = [] {
    std::vector<int> bytes;
    for (const Device& device : kDevices) bytes.push_back(device.shared_bytes_of_block);
    return pybind11::tuple(pybind11::cast(bytes));
  }();
}

}  // namespace surm::emulator
