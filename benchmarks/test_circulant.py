"""Circulant products beside torch.fft at a few sizes, for pytest-benchmark; each checks parity first."""

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

from typing import Any

from surm_kernels.command.bench import measure
from surm_kernels.command.bench.case import OURS, TORCH_FFT, Case, Point, point
from surm_kernels.command.bench.cases import CASES
from surm_kernels.command.bench.workload import workload

SIZES = (point(768, tokens=512), point(1024, tokens=512), point(4093, tokens=64), point(4096, tokens=64))
BLOCK_SIZES = (point(768, tokens=512),)
USES = {case.name: case for case in CASES}


def problems() -> list[Any]:
    """A case and a size, called circulant-training-768x512."""
    wanted = [("circulant-forward", SIZES), ("circulant-training", SIZES), ("block-circulant-training", BLOCK_SIZES)]
    return [
        pytest.param(USES[name], at, id=f"{name}-{at.in_features}x{at.tokens}")
        for name, points in wanted
        for at in points
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("contender", [OURS, TORCH_FFT])
@pytest.mark.parametrize(("case", "at"), problems())
def test_time_of_a_call(benchmark: Any, case: Case, at: Point, contender: str, dtype: torch.dtype) -> None:
    made = workload(case, at, dtype, lambda reason: None)
    deviation = measure.deviations(made)[contender]
    assert deviation.ok, f"off by {deviation.error:.1e}, allowed are {deviation.limit:.1e}"
    (chosen,) = (one for one in made.contenders if one.name == contender)
    with torch.set_grad_enabled(made.gradients):
        benchmark(chosen.call)
