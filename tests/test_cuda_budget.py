"""What the CUDA kernels take of a GPU, as the compiler reported it when the library was built: registers, no spills, no
stack, no static shared memory; and the shared memory of a block at every size that is promised."""

import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest
import torch

from build_support.extension import BUILD_FOLDER, sources
from build_support.ninja import ROOT
from surm_kernels import _extension
from surm_kernels.gpu_rule import Problem
from surm_kernels.ops import _cuda

REGISTERS = 65536  # of a multiprocessor, on every architecture from sm_80 on
KIB = 1024
SHARED_MEMORY = {"sm_80": 163 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB}  # of a block
# Threads of a block and blocks of a multiprocessor that each kernel is planned for, in float32 and in float64. A large
# transform fills the shared memory of a multiprocessor, so one block of it is all there is.
PLANNED = {
    **dict.fromkeys(("spectral_product", "spectral_product_grid"), ((512, 1), (256, 1))),
    **dict.fromkeys(("spectral_backward", "spectral_backward_grid"), ((512, 1), (256, 1))),
    **dict.fromkeys(("parameter_spectra", "parameter_gradients"), ((512, 1), (256, 1))),
    **dict.fromkeys(("ldr_product", "ldr_backward"), ((512, 1), (256, 1))),
    "sum_partials": ((256, 4), (256, 4)),
    **dict.fromkeys(("lay_out_kernel", "add_kernel"), ((256, 4), (256, 4))),
    "sum_kernel": ((512, 2), (512, 2)),
    "stochastic_sum_kernel": ((256, 4), (256, 4)),
    "rounding_key_kernel": ((512, 1), (512, 1)),
    "tensor_spectrum": ((512, 1), (512, 1)),
}
# The same of transforms on tensor cores, for each outer radix that is compiled: twelve warps of a product at 4096,
# eight of gradients.
TENSOR_PLANNED = {
    "tensor_product": {**dict.fromkeys((1, 2, 3, 4, 8), (128, 4)), 16: (128, 3), 32: (256, 1)},
    "tensor_gradients": {**dict.fromkeys((1, 2, 3, 4, 8, 16), (128, 2)), 32: (256, 1)},
}
# Of what is promised, sizes that are and are not powers of two.
PROMISED = {"sm_80": (768, 1536, 3072, 4608, 8192), "sm_90": (8192, 11008, 13824, 14336, 16384)}

REPORT = """\
ptxas info    : 12 bytes gmem
ptxas info    : Compiling entry function '_ZN4surm4cuda5timesIfLi4EEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN4surm4cuda5timesIfLi4EEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compile time = 1.547 mskernel.cu(2): warning #177-D: a variable was never referenced
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas info    : Function properties for other
    32 bytes stack frame, 34 bytes spill stores, 64 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 32 bytes cumulative stack size, 1024 bytes smem, 936 bytes cmem[0]
"""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture; memory in bytes."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int

    @property
    def name(self) -> str:
        """With the arguments of the template, without those of the call."""
        return self.kernel.removeprefix("void ").replace("(anonymous namespace)::", "").partition("(")[0]

    @property
    def function(self) -> str:
        """Without namespaces and arguments."""
        return self.name.partition("<")[0].rpartition("::")[2]

    def __str__(self) -> str:
        return f"{self.name}, {self.architecture}"


def read(report: str) -> list[Usage]:
    """The kernels in what `nvcc -Xptxas=-v` says."""
    found = []
    for part in report.split("Compiling entry function ")[1:]:
        kernel, architecture = re.match(r"'([^']+)' for '([^']+)'", part).groups()
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        numbers = (int(registers[1]), *map(int, stack.groups()), int(shared[1]) if shared else 0)
        found.append(Usage(kernel, architecture, *numbers))
    return found


def demangled(report: str) -> str:
    """With the names of kernels as they are written."""
    if shutil.which("c++filt") is None:
        pytest.skip("c++filt, which comes with the compiler, is not there", allow_module_level=True)
    return subprocess.run(["c++filt"], input=report, capture_output=True, text=True, check=True).stdout


def why_nothing() -> str:
    """Why there is nothing to look at, empty where there is."""
    if reason := _extension.why_no_cuda():
        return reason
    missing = [source for source in sources("csrc/cuda/*.cu") if not log_of(source).exists()]
    return f"the library was built elsewhere, without a log of {missing[0]}" if missing else ""


def log_of(source: str):
    return ROOT / BUILD_FOLDER / f"{source.removeprefix('csrc/')}.o.log"


def usages() -> list[Usage]:
    """Every kernel on every architecture that the library was compiled for."""
    logs = [log_of(source) for source in sources("csrc/cuda/*.cu")]
    return [one for log in logs for one in read(demangled(log.read_text()))]


NOTHING = why_nothing()
every_kernel = pytest.mark.parametrize(
    "usage", [pytest.param(None, marks=pytest.mark.skip(reason=NOTHING))] if NOTHING else usages(), ids=str
)
compiled = pytest.mark.skipif(bool(NOTHING), reason=NOTHING)


def planned(usage: Usage) -> tuple[int, int]:
    """Threads of a block and blocks of a multiprocessor."""
    if usage.function in TENSOR_PLANNED:
        return TENSOR_PLANNED[usage.function][int(re.search(r"<(\d+)", usage.name)[1])]
    in_float32, in_float64 = PLANNED[usage.function]
    return in_float64 if "double" in usage.name else in_float32


def test_what_ptxas_reports_is_read() -> None:
    first, second = read(REPORT)
    assert (first.architecture, first.registers, first.stack, first.static_shared) == ("sm_80", 40, 0, 0)
    assert second == Usage("other", "sm_90", 128, 32, 34, 64, 1024)
    assert first.kernel == "_ZN4surm4cuda5timesIfLi4EEEvPT_"
    assert read(demangled(REPORT))[0].function == "times"
    assert read(demangled(REPORT))[0].name == "surm::cuda::times<float, 4>"


@compiled
def test_every_kernel_was_compiled_for_every_architecture() -> None:
    wanted = {f"sm_{entry.removesuffix('+PTX').replace('.', '')}" for entry in _extension.cuda_architectures.split()}
    kernels: dict[str, set[str]] = {}
    for usage in usages():
        kernels.setdefault(usage.name, set()).add(usage.architecture)
    assert all(architectures == wanted for architectures in kernels.values())
    assert {usage.function for usage in usages()} == {*PLANNED, *TENSOR_PLANNED}


@every_kernel
def test_a_kernel_keeps_its_values_in_registers(usage: Usage) -> None:
    assert (usage.spill_stores, usage.spill_loads) == (0, 0)
    assert usage.stack == 0


@every_kernel
def test_as_many_blocks_as_planned_share_the_registers_of_a_multiprocessor(usage: Usage) -> None:
    threads, blocks = planned(usage)
    allocated = -(-usage.registers // 8) * 8
    assert allocated * threads * blocks <= REGISTERS


@every_kernel
def test_a_kernel_has_no_static_shared_memory_which_the_emulator_would_not_see(usage: Usage) -> None:
    assert usage.static_shared == 0


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", ["grid", "grid_backward"])
@pytest.mark.parametrize(("architecture", "size"), [(name, size) for name in PROMISED for size in PROMISED[name]])
def test_promised_sizes_fit_the_shared_memory(architecture: str, size: int, operator: str, dtype: torch.dtype) -> None:
    taken = _cuda.shared_bytes(Problem(operator, dtype, 1, 1, size, size))
    assert 0 < taken <= SHARED_MEMORY[architecture]


@compiled
def test_shared_memory_grows_with_the_size_until_it_is_too_large() -> None:
    taken = [_cuda.shared_bytes(Problem("grid", torch.float32, 1, 1, size, size)) for size in (768, 4096, 16384)]
    assert taken == sorted(taken)
    assert _cuda.shared_bytes(Problem("grid", torch.float32, 1, 1, 2**17, 2**17)) > max(SHARED_MEMORY.values())


def test_every_kernel_states_its_threads() -> None:
    kernels = 0
    for file in (ROOT / "csrc/cuda").glob("*.cu*"):
        for found in re.finditer(r"__global__\s+void\s+(\S+)", file.read_text()):
            kernels += 1
            assert found[1].startswith("__launch_bounds__("), f"{file.name}: {found[0]}"
    assert kernels > 0
