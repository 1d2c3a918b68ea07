"""What the tests of the Triton kernels share: the interpreter, and one compilation of every kernel."""

import fcntl
import os
from collections.abc import Mapping

import pytest

from tests.triton import harness


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, harness.Resources]:
    """The first configuration of every kernel on every target, by "name / target"; one process compiles for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    file = folder / "compiled.json"
    with open(folder / "compiled.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            harness.compile_in_processes(file, "--first")
        return harness.load(file)


@pytest.fixture(autouse=True)
def interpreted(request: pytest.FixtureRequest) -> None:
    """Triton interprets, for every test but those of compiled kernels."""
    triton = pytest.importorskip("triton")
    if "compiled" not in request.fixturenames and not triton.knobs.runtime.interpret:
        pytest.skip("Triton compiles in this process; TRITON_INTERPRET=1 pytest tests/triton interprets")
