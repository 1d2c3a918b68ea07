"""Tests on a GPU: without tuning, within their time, in processes that end where the GPU serves them no more."""

import os

from tests.gpu import MISSING, tune_nothing
from tests.gpu.hooks import (  # noqa: F401  which pytest finds here
    pytest_pyfunc_call,
    pytest_runtest_logreport,
    pytest_runtest_protocol,
    pytest_runtest_setup,
)

# torch.use_deterministic_algorithms, which poisons memory, wants it of cuBLAS.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if not MISSING:
    tune_nothing()
