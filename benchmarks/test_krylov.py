"""The krylov kernels beside torch.fft at a few sizes, for pytest-benchmark; each checks parity first."""

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

from typing import Any

from surm_kernels.command.bench import measure, methods
from surm_kernels.command.bench.cases import CASES, Case, Point, workload

SIZES = (Point(768, 512), Point(1024, 512), Point(4093, 64), Point(4096, 64))
BLOCK_SIZES = (Point(768, 512),)
USES = {case.name: case for case in CASES}


def problems() -> list[Any]:
    """A case and a size, called circulant-training-768x512."""
    wanted = [("circulant-forward", SIZES), ("circulant-training", SIZES), ("block-circulant-training", BLOCK_SIZES)]
    return [
        pytest.param(USES[name], point, id=f"{name}-{point.features}x{point.tokens}")
        for name, points in wanted
        for point in points
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("contender", [methods.OURS, methods.TORCH_FFT])
@pytest.mark.parametrize(("case", "point"), problems())
def test_time_of_a_call(benchmark: Any, case: Case, point: Point, contender: str, dtype: torch.dtype) -> None:
    made = workload(case, point, dtype, lambda reason: None)
    deviation = measure.deviations(made)[contender]
    assert deviation.ok, f"off by {deviation.error:.1e}, allowed are {deviation.limit:.1e}"
    (chosen,) = (one for one in made.contenders if one.name == contender)
    with torch.set_grad_enabled(made.gradients):
        benchmark(chosen.call)
