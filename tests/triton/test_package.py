"""The package of Triton kernels without Triton or a GPU, and the harness that judges compiled kernels."""

import subprocess
import sys

import pytest

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
