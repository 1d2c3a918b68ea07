"""What keeps a run of tests on a GPU useful to its end: time limits, and an end to processes that a GPU serves no more.

pytest-xdist starts another worker in its place, so that one illegal access, or one test that hangs, costs no other.
"""

import faulthandler
import math
import os
import time
from collections.abc import Generator

import pytest

from tests import gpu

UNTIL = float(os.environ.get("SURM_KERNELS_GPU_UNTIL") or "inf")  # as time.time() counts
SECONDS_OF_A_TEST = float(os.environ.get("SURM_KERNELS_GPU_TEST_SECONDS") or "inf")
_failed = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets a run end with a report of what it did, where its time is over."""
    if time.time() > UNTIL:
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Ends the process where a test takes too long or, once its failure is reported, has spoilt the GPU."""
    global _failed
    _failed = False
    if math.isfinite(SECONDS_OF_A_TEST):
        faulthandler.dump_traceback_later(SECONDS_OF_A_TEST, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        if _failed and not gpu.device_serves():
            os._exit(1)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global _failed
    _failed = _failed or report.failed
