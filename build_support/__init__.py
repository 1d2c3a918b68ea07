"""Builds the compiled library of surm_kernels: C++ by the system's compiler, CUDA by nvcc, both driven by ninja.

`python -m build_support` builds in place, and `setup.py` uses the same functions for wheels and editable installs.
Only `csrc/*.cpp` sees torch's headers (its stable ABI), so one library serves every torch from 2.11 on.
"""
