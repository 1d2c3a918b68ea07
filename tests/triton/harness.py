"""Compiles Triton kernels ahead of time, without a GPU, and reads what they take of one.

A test file lists its kernels in `AHEAD_OF_TIME`. Kernels are either interpreted or compiled from the moment Triton is
imported, so the compiled ones live in a process of their own, `python -m tests.triton.compile_all`.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # of a block
# ptxas keeps a value or two in memory where that lets one more thread block run beside the others; more is a shortage.
SPARE_STACK = 16
NEVER_ALIGNED = ("fp32", "fp64")
# A product of 16-bit tiles as Triton writes it down, and what it has to become on any target.
NARROW_PRODUCT = re.compile(r"tt\.dot\b.*x(bf16|f16)>")
MATRIX_UNITS = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma_)")


@dataclass(frozen=True)
class Case:
    """A kernel with the types of its arguments, as one launch has them.

    Args:
        name: what the results are found by, unique.
        kernel: what @triton.jit or @triton.autotune gave.
        types: of the arguments that are no constexpr, such as "*bf16", "i32", "fp32"; None as an argument is "none".
        constants: constexpr arguments that are not part of a configuration.
        odd: integers and pointers that are no multiple of 16, as the others are taken to be.
        only: whether a triton.Config is for these types on a target of `TARGETS`.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    odd: tuple[str, ...] = ()
    only: Callable[[Any, str], bool] = lambda config, target: True

    @property
    def function(self) -> Any:
        """The kernel below autotuning and heuristics."""
        kernel = self.kernel
        while not hasattr(kernel, "arg_names") or hasattr(kernel, "configs"):
            kernel = kernel.fn
        return kernel

    def configs(self, target: str) -> list[tuple[dict[str, Any], int, int]]:
        """(constexprs, num_warps, num_stages) of every configuration the kernel is tuned over."""
        configs = getattr(self.kernel, "configs", None)
        if configs is None:
            return [({}, 4, 3)]
        wanted = [config for config in configs if self.only(config, target)]
        return [(dict(config.kwargs), config.num_warps, config.num_stages) for config in wanted]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: per thread, but for the shared memory of a thread block, in bytes."""

    registers: int = 0
    stack: int = 0
    local: int = 0
    spills: int = 0
    shared: int = 0
    narrow_products: int = 0  # in the source
    matrix_instructions: int = 0
    failure: str = ""  # of the compiler; all else is then 0


def compile_ahead(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    target: str,
    num_warps: int,
    num_stages: int,
    odd: tuple[str, ...] = (),
) -> Resources:
    """What a kernel takes on a target of `TARGETS`.

    `signature` has a type for every argument, in any order, "constexpr" for those in `constexprs`. Pointers and
    integers are taken to be divisible by 16, but for those named in `odd`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    ordered = {name: signature[name] for name in kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, (name, kind) in enumerate(ordered.items())
        if kind not in ("constexpr", *NEVER_ALIGNED) and name not in odd
    }
    source = ASTSource(fn=kernel, signature=ordered, constexprs=dict(constexprs), attrs=aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    if target.startswith("sm_"):
        assembly, taken = compiled.asm["ptx"], _cuda_resources(compiled.asm["cubin"], compiled.metadata.shared)
    else:
        assembly, taken = compiled.asm["amdgcn"], _hip_resources(compiled.asm["amdgcn"], compiled.metadata.shared)
    return dataclasses.replace(
        taken,
        narrow_products=len(NARROW_PRODUCT.findall(compiled.asm["ttir"])),
        matrix_instructions=len(MATRIX_UNITS.findall(assembly)),
    )


def _cuda_resources(cubin: bytes, shared: int) -> Resources:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    # A cubin lists the kernel and, on some targets, device functions it calls: the kernel comes with the most.
    registers, stack, local = (
        max(int(value) for value in re.findall(rf"{name}:(\d+)", listing)) for name in ("REG", "STACK", "LOCAL")
    )
    return Resources(registers, stack, local, 0, shared)


def _hip_resources(assembly: str, shared: int) -> Resources:
    def field_of(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        assert found is not None, f"the assembly does not say its {name}"
        return int(found[1])

    return Resources(
        field_of("vgpr_count"), field_of("private_segment_fixed_size"), 0, field_of("vgpr_spill_count"), shared
    )


def compile_case(case: Case, targets: Sequence[str], every_config: bool) -> dict[str, Resources]:
    """The resources of a case by "name / target", by "name / target / number" when every configuration is wanted."""
    results = {}
    for target in targets:
        configs = case.configs(target)
        for number, (constexprs, num_warps, num_stages) in enumerate(configs if every_config else configs[:1]):
            constants = {**case.constants, **constexprs}
            signature = {**case.types, **dict.fromkeys(constants, "constexpr")}
            for name, kind in case.types.items():
                if kind == "none":
                    constants[name], signature[name] = None, "constexpr"
            key = f"{case.name} / {target}" + (f" / {number}" if every_config else "")
            try:
                results[key] = compile_ahead(
                    case.function, signature, constants, target, num_warps, num_stages, case.odd
                )
            except Exception as error:  # any failure of the compiler is a finding about this one kernel
                results[key] = Resources(failure=f"{type(error).__name__}: {error}")
    return results


def assert_sound(case: Case, target: str, compiled: Mapping[str, Resources]) -> None:
    """The kernel of a case runs on its target with all of its values in registers and its 16-bit products on the
    matrix units."""
    found = faults(target, compiled[f"{case.name} / {target}"])
    assert not found, f"{case.name} on {target}: {'; '.join(found)}"


def case_and_target(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrises a test by `case` and `target`."""
    pairs = [(case, target) for case in cases for target in TARGETS]
    return pytest.mark.parametrize(("case", "target"), pairs, ids=[f"{case.name}-{target}" for case, target in pairs])


def faults(target: str, resources: Resources) -> list[str]:
    """What keeps a kernel from running well on its target: no room, or values that left the registers."""
    if resources.failure:
        return [resources.failure]
    found = [f"{resources.stack} bytes of stack"] if resources.stack > SPARE_STACK else []
    if resources.local:
        found.append(f"{resources.local} bytes of local memory")
    if resources.spills:
        found.append(f"{resources.spills} spilled registers")
    if resources.narrow_products and not resources.matrix_instructions:
        found.append("16-bit products that do not use the matrix units")
    return [*found, *too_large(target, resources)]


def too_large(target: str, resources: Resources) -> list[str]:
    """Shared memory beyond that of a target, for which Triton's autotuning passes over a configuration."""
    if resources.shared <= SHARED_LIMIT[target]:
        return []
    return [f"{resources.shared} bytes of shared memory, where {SHARED_LIMIT[target]} are all"]


def dump(results: Mapping[str, Resources], path: Path) -> None:
    path.write_text(json.dumps({key: dataclasses.asdict(value) for key, value in results.items()}, indent=1))


def load(path: Path) -> dict[str, Resources]:
    return {key: Resources(**value) for key, value in json.loads(path.read_text()).items()}


def compile_in_processes(path: Path, *arguments: str) -> None:
    """Writes what `python -m tests.triton.compile_all` with these arguments finds, half of the targets at a time."""
    targets = list(TARGETS)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        files = Path(folder) / "even.json", Path(folder) / "odd.json"
        halves = pool.map(_compile_in_a_process, files, (targets[::2], targets[1::2]), repeat(arguments))
        dump({key: resources for half in halves for key, resources in half.items()}, path)


def _compile_in_a_process(path: Path, targets: Sequence[str], arguments: Sequence[str]) -> dict[str, Resources]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    wanted = [f"--target={target}" for target in targets]
    command = [sys.executable, "-m", "tests.triton.compile_all", "--quiet", "--json", str(path), *wanted, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if not path.exists():
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return load(path)
