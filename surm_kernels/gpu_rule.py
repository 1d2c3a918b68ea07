"""Which kernel serves a CUDA tensor: CUDA C++, Triton or the PyTorch reference. The rule, without a GPU.

CUDA C++ has the transforms: `grid` and `ldr` in every type, the spectra and dense matrices of grids; and merging.
Triton has matrix products with tiles of W made on the way: `grid` and the generated matrices, and besides `diagonal`
and `kronecker`; not in float64. Where both could serve:

1. few tokens (less than FEW_TOKENS) go to CUDA C++, since a tile of Triton's has 16 and a launch more to do;
2. else blocks up to a size go to Triton, which takes 2 m n operations a token on tensor cores against a transform that
   is bound by memory; that size is in `Crossovers`, for each type and for the pullbacks of large grids;
3. larger blocks go to CUDA C++, which transforms a single block in bfloat16 on tensor cores, if it is no Hankel one and
   takes a transform of 256 times 1 to 16 or an even number to 32: by count in one to two times the time of a copy, a
   Toeplitz block in twice that. In float16 it does so for 256 times 1, 2, 3, 4, 8, 16 or 32, in half as much more. 256
   is where a matrix product is as fast as a copy;
4. what does not fit the shared memory of the device goes to Triton, in every size.

What neither serves runs on the reference. SURM_KERNELS_BACKEND=cuda or triton allows that backend alone.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from surm_kernels import _cache

#: Operators with a kernel in CUDA C++.
CUDA_OPERATORS = (
    *(f"grid{part}" for part in ("", "_pullback", "_backward", "_dense", "_dense_adjoint")),
    *("grid_spectrum", "grid_by_spectrum", "grid_merge"),
    *("ldr", "ldr_pullback_left", "ldr_pullback_right", "ldr_backward"),
    *("stochastic_sum", "rounding_key"),
)

#: Operators with a kernel in Triton, and the module of surm_kernels.triton that has it under the same name.
TRITON_OPERATORS = {
    **dict.fromkeys(("grid", "grid_pullback", "grid_backward"), "structured"),
    **dict.fromkeys(("generated", "generated_backward"), "structured"),
    **dict.fromkeys(("diagonal", "diagonal_pullback", "diagonal_backward"), "diagonal"),
    **dict.fromkeys(("kronecker", "kronecker_backward"), "kronecker"),
    **dict.fromkeys(("kronecker_pullback_left", "kronecker_pullback_right"), "kronecker"),
    **dict.fromkeys(("circulant_bank", "diagonal_bank"), "bank"),
}

FEW_TOKENS = 16


class Problem(NamedTuple):
    """What the choice depends on. `dtype` is the widest of the operands; the sizes are those of W as it is applied."""

    operator: str
    dtype: torch.dtype
    out_blocks: int = 1
    in_blocks: int = 1
    rows: int = 1  # of a block
    columns: int = 1
    rank: int = 0  # where W has one
    few_tokens: bool = False
    kind: int = 0  # of the blocks of a grid

    @property
    def is_gradient(self) -> bool:
        """Whether sums over tokens are wanted."""
        return "pullback" in self.operator or "backward" in self.operator

    def __str__(self) -> str:
        name, rank = str(self.dtype).removeprefix("torch."), f" and rank {self.rank}" if self.rank else ""
        blocks = f"{self.out_blocks} x {self.in_blocks} blocks of {self.rows} x {self.columns}"
        return f"{self.operator} in {name} with {blocks}{rank}"


class Machine(NamedTuple):
    """What there is: why a backend is missing, empty where it is there, and bytes of shared memory for a block."""

    cuda: str
    triton: str
    shared_memory: int


@dataclass(frozen=True)
class Crossovers:
    """Up to which size blocks go to Triton where both backends serve; the mean size 2 m n / (m + n) of m x n blocks.

    The defaults are counted, not measured: a token of bfloat16 moves 4 n bytes and CUDA C++ aims at twice the time of a
    copy, 2 n / 10^12 seconds at 4 TB/s; a matrix product takes 2 n^2 operations at 700 Tflop/s, in float32 at 50. Those
    meet at 700 and, with the bytes of float32, at 100; the tiles of W are not free, so the defaults are lower. The
    pullback of a grid in CUDA C++ moves 8 more bytes for each block and value. `surm-kernels tune --device cuda`
    measures a device and keeps its own.
    """

    sixteen_bit: int = 512
    sixteen_bit_grid_pullback: int = 768
    float32: int = 64
    grid: int = 16  # blocks of a grid that counts as large

    def largest(self, problem: Problem) -> int:
        """The largest size for Triton in a problem of this kind."""
        if problem.dtype.itemsize > 2:
            return self.float32
        large_grid = problem.out_blocks * problem.in_blocks >= self.grid
        return self.sixteen_bit_grid_pullback if large_grid and problem.is_gradient else self.sixteen_bit

    def prefer_triton(self, problem: Problem) -> bool:
        """Whether Triton comes first where both backends serve."""
        m, n = problem.rows, problem.columns
        return not problem.few_tokens and 2 * m * n <= self.largest(problem) * (m + n)


#: Where both serve: always CUDA C++, or always Triton but for few tokens.
ALWAYS_CUDA = Crossovers(0, 0, 0)
ALWAYS_TRITON = Crossovers(1 << 62, 1 << 62, 1 << 62)


def cuda_refusal(problem: Problem, machine: Machine, shared_bytes: int) -> str:
    """Why CUDA C++, which takes so many bytes of shared memory, does not serve a problem; empty if it does."""
    if problem.operator not in CUDA_OPERATORS:
        return "there is no such kernel in CUDA C++"
    if machine.cuda:
        return machine.cuda
    if shared_bytes > machine.shared_memory:
        return f"it takes {shared_bytes} bytes of shared memory, the device has {machine.shared_memory}"
    return ""


def triton_refusal(problem: Problem, machine: Machine) -> str:
    """Why Triton does not serve a problem; empty if it does."""
    if problem.operator not in TRITON_OPERATORS:
        return "there is no such kernel in Triton"
    if problem.dtype == torch.float64:
        return "the kernels in Triton do not compute in float64"
    return machine.triton


def choose(problem: Problem, refusals: Mapping[str, str], crossovers: Crossovers, forced: str = "auto") -> str:
    """The backend for a problem: "cuda", "triton" or "reference".

    Args:
        problem: the operator and its sizes.
        refusals: of "cuda" and "triton", as `cuda_refusal` and `triton_refusal` give them.
        crossovers: of the device.
        forced: what SURM_KERNELS_BACKEND says; "cuda" and "triton" allow that backend alone.

    Raises:
        RuntimeError: the forced backend does not serve; the message says what was asked and why not.
    """
    if forced in refusals:
        if refusals[forced]:
            raise RuntimeError(f"surm_kernels: SURM_KERNELS_BACKEND={forced}, but not {problem}: {refusals[forced]}")
        return forced
    order = ("triton", "cuda") if crossovers.prefer_triton(problem) else ("cuda", "triton")
    return next((backend for backend in order if not refusals[backend]), "reference")


@cache
def crossovers_of(gpu: str) -> Crossovers:
    """The user's crossovers of a GPU, else the defaults; a file that does not hold them is ignored with a warning."""
    file = user_file(gpu)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return Crossovers(**{field.name: int(document[field.name]) for field in fields(Crossovers)})
    except FileNotFoundError:
        return Crossovers()
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"surm_kernels ignores {file}, {type(error).__name__}: {error}; `surm-kernels tune` writes it anew"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return Crossovers()


def user_file(gpu: str) -> Path:
    """Where a user's own crossovers of a GPU lie."""
    from surm_kernels import __version__  # the package imports this module before it has a version

    return _cache.file(f"gpu {__version__} {gpu}")


def write(crossovers: Crossovers, gpu: str) -> Path:
    """Keeps the crossovers of a GPU in the user's cache."""
    file = user_file(gpu)
    _cache.write(json.dumps(asdict(crossovers), indent=1) + "\n", file)
    return file


def forget() -> None:
    """Has the files read anew."""
    crossovers_of.cache_clear()
