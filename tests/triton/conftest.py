"""What the tests of the Triton kernels share: the interpreter, and one compilation of every kernel."""

from collections.abc import Mapping

import pytest

from tests.triton import harness


@pytest.fixture(scope="session")
def compiled() -> Mapping[str, harness.Resources]:
    """The first configuration of every kernel on every target, by "name / target"."""
    return harness.compiled_in_a_process("--first")


@pytest.fixture(autouse=True)
def interpreted(request: pytest.FixtureRequest) -> None:
    """Triton interprets, for every test but those of compiled kernels."""
    triton = pytest.importorskip("triton")
    if "compiled" not in request.fixturenames and not triton.knobs.runtime.interpret:
        pytest.skip("Triton compiles in this process; TRITON_INTERPRET=1 pytest tests/triton interprets")
