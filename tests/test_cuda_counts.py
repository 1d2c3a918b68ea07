"""What transforms on tensor cores take, counted in machine code: instructions and bytes for a complex value.

A complex value is one number of each of two tokens. Counted is one round of the loop over pairs of tokens, the seldom
taken ways in it included, where the loop over the transforms of 256 in it takes as many as a warp has, in the mean of
the warps. Only the compiler for which the counts are promised is held to them.
"""

import re
import subprocess

import pytest

from build_support.extension import BUILD_FOLDER
from build_support.ninja import ROOT
from build_support.toolchain import Missing, find_nvcc
from surm_kernels import _extension
from tests.machine_code import Instruction, Loop, functions, main_loop
from tests.tensor_cores import ALL_SIZES

COMPILER = "13.0"
ARCHITECTURE = "sm_90"
# Of every outer radix that is compiled, the warps that share a pair of tokens. It serves smaller ones, too.
WARPS = {1: 1, 2: 1, 3: 1, 4: 1, 8: 4, 16: 4, 32: 8}
RADICES = [size // 256 for size in ALL_SIZES]
KERNELS = {
    "product": ("tensor_product", "tensor_product<{}, {}, false, {}>"),
    "pullback": ("tensor_gradients", "tensor_gradients<{}, {}, false, {}>"),
    "backward": ("tensor_gradients", "tensor_gradients<{}, {}, true, {}>"),
}
# Of each type: of n = 4096; then of the radices that are compiled, twisted or not; bytes of the product and products of
# the matrix unit at 4096, of which those with eight columns. Of all radices in bfloat16, where the exact kernels take
# about 135, and 205 for both gradients.
INSTRUCTIONS = {"BFloat16": (65, 65, 100), "Float16": (87, 84, 130)}
INSTRUCTIONS_OF_COMPILED = {"BFloat16": (75, 77, 115), "Float16": (98, 96, 148)}
INSTRUCTIONS_OF_ALL = {"product": 100, "pullback": 110, "backward": 155}
BYTES = {"BFloat16": 55, "Float16": 72}
MATRIX_PRODUCTS = {"BFloat16": (7, 8, 11), "Float16": (13.5, 12, 19.5)}
OF_EIGHT_COLUMNS = {"BFloat16": (0, 0, 0), "Float16": (2.5, 2, 3.5)}


def why_not() -> str:
    """Why nothing can be counted, empty where it can."""
    if reason := _extension.why_no_cuda():
        return reason
    if missing := [source for source, _ in KERNELS.values() if not object_of(source).exists()]:
        return f"the library was built elsewhere, without {object_of(missing[0])}"
    try:
        version = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    except (Missing, OSError, subprocess.CalledProcessError) as error:
        return str(error)
    found = re.search(r"release (\d+\.\d+)", version)
    if found is None or found[1] != COMPILER:
        return f"counts are promised of nvcc {COMPILER} alone, this is {found[1] if found else 'another'}"
    wanted = ARCHITECTURE.removeprefix("sm_")
    there = [entry.removesuffix("+PTX").replace(".", "") for entry in _extension.cuda_architectures.split()]
    return "" if wanted in there else f"the library was not compiled for {ARCHITECTURE}"


def object_of(source: str):
    return ROOT / BUILD_FOLDER / f"cuda/{source}.cu.o"


NOTHING = why_not()
counted = pytest.mark.skipif(bool(NOTHING), reason=NOTHING)


@pytest.fixture(scope="module")
def code() -> dict[str, list[Instruction]]:
    sources = {source for source, _ in KERNELS.values()}
    return {name: one for source in sources for name, one in functions(object_of(source), ARCHITECTURE).items()}


class Counted:
    """The loop of the kernel that serves a radix; butterflies have one of their own for what is twisted."""

    def __init__(
        self, code: dict[str, list[Instruction]], kernel: str, token: str, radix: int, twisted: bool = False
    ) -> None:
        compiled = min(one for one in WARPS if one >= radix)
        self.rounds = radix / WARPS[compiled]
        name = KERNELS[kernel][1].format(compiled, token, str(twisted).lower())
        self.loop: Loop = main_loop(code[name], "HMMA")
        assert len(self.loop.inner) == (1 if compiled > 1 else 0)

    def for_a_value(self, value) -> float:
        """The sum of value(instruction) over the loop, for each complex value of a thread."""
        return self.loop.total(value, self.rounds) / (8 * self.rounds)

    def instructions(self) -> float:
        return self.for_a_value(lambda _: 1)


def of(limits: dict[str, tuple[float, ...]], kernel: str, token: str) -> float:
    return limits[token][list(KERNELS).index(kernel)]


@counted
@pytest.mark.parametrize("token", BYTES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_instructions_for_a_complex_value(code, kernel: str, token: str) -> None:
    assert Counted(code, kernel, token, 16).instructions() <= of(INSTRUCTIONS, kernel, token)
    found = {radix: Counted(code, kernel, token, radix).instructions() for radix in WARPS}
    assert max(found.values()) <= of(INSTRUCTIONS_OF_COMPILED, kernel, token), found


@counted
@pytest.mark.parametrize("kernel", KERNELS)
def test_instructions_of_a_radix_that_does_not_fill_its_kernel(code, kernel: str) -> None:
    found = {radix: Counted(code, kernel, "BFloat16", radix).instructions() for radix in RADICES}
    assert max(found.values()) <= INSTRUCTIONS_OF_ALL[kernel], found


@counted
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("radix", [1, 2, 3, 4])
def test_instructions_of_a_twist_in_registers(code, kernel: str, radix: int) -> None:
    found = Counted(code, kernel, "BFloat16", radix, True).instructions()
    assert found <= of(INSTRUCTIONS_OF_COMPILED, kernel, "BFloat16")


@counted
@pytest.mark.parametrize("token", BYTES)
def test_bytes_through_l1_and_shared_memory_for_a_complex_value(code, token: str) -> None:
    assert Counted(code, "product", token, 16).for_a_value(lambda one: one.bytes) <= BYTES[token]


@counted
@pytest.mark.parametrize("token", BYTES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_loops_have_the_matrix_products_that_the_transforms_have(code, kernel: str, token: str) -> None:
    """At 4096: two or four for each 16 values in a 16-point transform, four where one of its factors is split in two,
    and in float16 half a one of eight columns for each value that is."""
    loop = Counted(code, kernel, token, 16)
    for operation, counts in (("HMMA", MATRIX_PRODUCTS), ("HMMA.1688", OF_EIGHT_COLUMNS)):
        found = loop.for_a_value(lambda one, operation=operation: one.operation.startswith(operation))
        assert found == of(counts, kernel, token)


LISTING = (
    *((0x00, "", "MOV R1, c[0x0][0x28]"), (0x10, "", "LDG.E.128 R4, [R2.64]"), (0x20, "", "HMMA.16816.F32 R4, R8")),
    *((0x30, "", "LDSM.16.MT88.4 R4, [R2]"), (0x40, "@P0", "BRA 0x20"), (0x50, "", "BRA.DIV UR4, 0x90")),
    *((0x60, "", "STS.64 [R0], R4"), (0x70, "", "BRA.U UP0, 0x10"), (0x80, "", "EXIT")),
    *((0x90, "", "WARPSYNC R1"), (0xA0, "", "BRA 0x60")),
)


def test_a_loop_and_what_is_in_it_are_found_and_counted() -> None:
    loop = main_loop([Instruction(*one) for one in LISTING], "HMMA")
    assert [one.address for one in loop.code] == [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70]
    assert [[one.address for one in inner] for inner in loop.inner] == [[0x20, 0x30, 0x40]]
    assert loop.total(lambda _: 1, 3) == 7 + 2 * 3
    assert loop.total(lambda one: one.bytes, 3) == 16 + 3 * 16 + 8
