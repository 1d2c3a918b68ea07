"""A run within its time, and tests of what a forced backend does not serve skipped."""

import os
import time
from collections.abc import Generator

import pytest

from tests.gpu import MISSING, tune_nothing

# torch.use_deterministic_algorithms, which poisons memory, wants it of cuBLAS.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
SECONDS = float(os.environ.get("SURM_KERNELS_GPU_TEST_SECONDS") or "inf")
_started = time.monotonic()

if not MISSING:
    tune_nothing()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets a run end with a report of what it did, where its time is over."""
    if time.monotonic() - _started > SECONDS:
        pytest.skip("the time for these tests is over")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Skips where SURM_KERNELS_BACKEND forces a backend that does not serve what is tested."""
    try:
        return (yield)
    except RuntimeError as error:
        if "SURM_KERNELS_BACKEND=" not in str(error):
            raise
        pytest.skip(str(error))
