"""The package of Triton kernels without Triton or a GPU, and the harness that judges compiled kernels."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.triton import harness
from tests.triton.compile_all import MODULES

IMPORT_WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import surm_kernels.triton
assert "Triton cannot be imported" in surm_kernels.triton.why_not()
"""

IMPORT_AS_ON_A_GPU = """
import importlib, pkgutil, surm_kernels.triton
from triton.runtime import driver
assert not surm_kernels.triton.why_not()
for module in pkgutil.iter_modules(surm_kernels.triton.__path__):
    importlib.import_module(f"surm_kernels.triton.{module.name}")
assert driver._active is None and driver._default is None
"""


@pytest.mark.parametrize("program", [IMPORT_WITHOUT_TRITON, IMPORT_AS_ON_A_GPU], ids=["no Triton", "compiling"])
def test_importing_needs_neither_triton_nor_a_gpu(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run([sys.executable, "-c", program], cwd=harness.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_test_file_of_kernels_is_compiled() -> None:
    files = {path.stem for path in (harness.ROOT / "tests/triton").glob("test_*.py")}
    assert files == {*MODULES, "test_package"}


def test_a_kernel_that_lacks_room_registers_or_matrix_units_is_at_fault() -> None:
    sound = harness.Resources(255, harness.SPARE_STACK, shared=163 * 1024, narrow_products=1, matrix_instructions=4)
    assert not harness.faults("sm_80", sound)
    for target, resources in (
        ("sm_80", harness.Resources(failure="does not compile")),
        ("sm_90", harness.Resources(stack=harness.SPARE_STACK + 1)),
        ("sm_100", harness.Resources(local=4)),
        ("gfx942", harness.Resources(spills=1)),
        ("sm_90", harness.Resources(narrow_products=1)),
        ("gfx942", sound),
    ):
        assert harness.faults(target, resources)


def test_a_product_of_16_bit_tiles_is_seen_in_what_triton_writes_down() -> None:
    line = "%1 = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<64x32x{0}> * tensor<32x64x{0}> -> tensor<64x64xf32>"
    for kind, narrow in (("bf16", True), ("f16", True), ("f32", False)):
        assert bool(harness.NARROW_PRODUCT.search(line.format(kind))) == narrow


class Kernel:
    """In the place of one of Triton's: notes the block that it is run with."""

    arg_names = ("x", "size")

    def __init__(self) -> None:
        self.blocks: list[int] = []

    @staticmethod
    def fn() -> None: ...

    def run(self, x: torch.Tensor, size: int, BLOCK: int, **options: object) -> None:
        self.blocks.append(BLOCK)


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that tunes, as where Triton compiles."""
    monkeypatch.setattr(pytest.importorskip("triton").knobs.runtime, "interpret", False)
    return importlib.import_module("surm_kernels.triton._tuning")


def test_a_kernel_is_measured_once_for_each_kind_of_device(tuning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, measured, best, kind = Kernel(), [], {"small": 16, "large": 32}, "small"

    def measure(call: Callable[[], object], quantiles: object) -> list[int]:
        call()
        measured.append(kind)
        return 3 * [abs(kernel.blocks.pop() - best[kind])]

    monkeypatch.setattr(tuning, "measure", measure)
    monkeypatch.setattr(tuning, "_kind", lambda: kind)
    configs = [tuning.triton.Config({"BLOCK": size}) for size in best.values()]
    tuned = tuning.tuned(configs, ["size"])(kernel)
    for turn in ("small", "large", "small", "large"):
        kind = turn
        tuned.run(torch.ones(3), 3)
    assert kernel.blocks == [16, 32, 16, 32]
    assert measured == ["small", "small", "large", "large"]


def test_nothing_is_measured_while_a_graph_is_captured(tuning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="one ordinary call before a CUDA graph is captured"):
        tuning.measure(lambda: pytest.fail("it ran"), None)
