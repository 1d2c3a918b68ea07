"""The CUDA kernels on the CPU, under an emulator that checks how their threads share memory.

`emulator.h` stands in for CUDA. `build.emulated_kernels()` are the package's own kernels and their glue compiled
against it.
"""
