"""Where memory is missing, what is raised is what torch raises for the same allocation, which tools look for."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from surm_kernels import _extension
from surm_kernels import functional as F
from surm_kernels.block_kinds import CIRCULANT, TOEPLITZ
from surm_kernels.ops import _cuda, _problems, grid
from surm_kernels.reference.ops import grid as reference

TOKENS = 2**40
TORCH_TELLS = "2.13"  # its stable ABI, from this version on

compiled = pytest.mark.skipif(not _extension.available, reason="the reference allocates through torch alone")


def expanded(width: int) -> Tensor:
    """More tokens than there is memory for."""
    return torch.zeros(1, 1, width).expand(1, TOKENS, width)


def raised(call: Callable[[], object]) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        call()
    return caught.value


@compiled
@pytest.mark.parametrize(
    ("call", "width"),
    [
        (lambda: F.circulant_linear(expanded(8), torch.randn(8)), 8),
        (lambda: F.toeplitz_linear(expanded(8), torch.randn(19)), 12),
        (lambda: F.toeplitz_like_linear(expanded(8), torch.randn(2, 8), torch.randn(2, 8)), 8),
        (lambda: F.kronecker_linear(expanded(8), torch.randn(3, 2), torch.randn(5, 4)), 15),
        (lambda: F.siva_linear(expanded(8), torch.randn(5, 3), torch.randn(3), torch.randn(8, 3)), 5),
        (lambda: grid.grid_pullback(expanded(8)[..., ::2], expanded(4), TOEPLITZ, 4, 4, 1.0), 4),
    ],
    ids=["circulant", "toeplitz", "toeplitz-like", "kronecker", "siva", "pullback of rows to be copied"],
)
def test_an_output_without_memory_is_reported_as_torch_does(call: Callable[[], object], width: int) -> None:
    error, wanted = raised(call), raised(lambda: torch.empty(1, TOKENS, width))
    assert type(error) is type(wanted)
    if torch.__version__ >= TORCH_TELLS:
        assert str(error) == str(wanted)
    tool = pytest.importorskip("accelerate.utils.memory", reason="a tool that looks for it")
    assert tool.should_reduce_batch_size(error)


WORK = """
import resource, torch
from surm_kernels import functional as F
t, x = torch.randn(2**24), torch.randn(1, 2**23)
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**27, taken + 2**27))
F.toeplitz_linear(x, t)
"""


@compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")
def test_working_memory_that_is_missing_is_reported_in_the_same_words() -> None:
    result = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "RuntimeError: surm_kernels: DefaultCPUAllocator: can't allocate memory" in result.stderr


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """A product as CUDA tensors run it, by a kernel that raises these messages, one a call, and then has room."""
    monkeypatch.setattr(_cuda, "_backend", lambda problem, device: "cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def product(*messages: str) -> Tensor:
        left = list(messages)

        def function(*arguments: Any) -> Tensor:
            if left:
                raise RuntimeError(left.pop(0))
            return reference.grid(*arguments)

        monkeypatch.setattr(_cuda, "_function", lambda name, backend: function)
        run = _cuda.kernel("grid", _problems.grid, reference.grid)
        return run(torch.ones(1, 3, 8), torch.ones(1, 1, 1, 8), None, CIRCULANT, 8, 1.0, False)

    return product


FULL = "CUDA out of memory. Tried to allocate 20.00 GiB."
NO_TABLES = "surm_kernels: grid with 1 x 1 blocks of 8 x 8 and 1 x 3 tokens failed on CUDA: out of memory"


def test_on_gpus_it_has_torchs_type(on_a_gpu) -> None:
    full = raised(lambda: on_a_gpu(FULL, FULL))
    assert type(full) is torch.OutOfMemoryError
    assert str(full) == FULL
    other = raised(lambda: on_a_gpu("surm_kernels: x must have 3 dimensions, got 2"))
    assert type(other) is RuntimeError


def test_on_gpus_torch_gives_back_what_it_keeps_for_later_before_a_call_fails(on_a_gpu, monkeypatch) -> None:
    given_back: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(None))
    assert torch.equal(on_a_gpu(NO_TABLES), torch.full((1, 3, 8), 8.0))
    assert len(given_back) == 1
    other = raised(lambda: on_a_gpu(NO_TABLES, "surm_kernels: another failure"))
    assert type(other) is RuntimeError and str(other) == "surm_kernels: another failure"


def test_a_captured_graph_is_not_spoilt_by_giving_back_memory(on_a_gpu, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("memory was given back"))
    assert type(raised(lambda: on_a_gpu(NO_TABLES))) is torch.OutOfMemoryError
