// The package's CUDA kernels under the emulator. The operators register themselves when the module is loaded; here are
// the controls of the emulator they run on.
#include <pybind11/pybind11.h>

#include "controls.h"
#include "cuda/device.cuh"

PYBIND11_MODULE(emulated_kernels, m) { surm::emulator::bind_controls(m); }
