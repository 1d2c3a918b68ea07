"""Our product of every other structure beside its rivals at a small size, for pytest-benchmark; parity first."""

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

from typing import Any

from surm_kernels.command.bench import measure
from surm_kernels.command.bench.case import Case, Point
from surm_kernels.command.bench.cases import CASES
from surm_kernels.command.bench.workload import workload

SIZES = {
    "toeplitz-training": (Point(768, 768, 512), Point(768, 3072, 512)),
    "toeplitz-like-training": (Point(768, 768, 512),),
    "kronecker-training": (Point(768, 768, 512),),
    "vandermonde-training": (Point(768, 768, 512),),
    "hydra-training": (Point(768, 768, 512),),
}


def problems() -> list[Any]:
    """A case, a size and a contender, called toeplitz-training-768-3072-torch.fft."""
    return [
        pytest.param(case, point, method.name, id=f"{case.name}-{point.in_features}-{point.out_features}-{method.name}")
        for case in CASES
        for point in SIZES.get(case.name, ())
        for method in case.contenders
    ]


@pytest.mark.parametrize(("case", "point", "contender"), problems())
def test_time_of_a_call(benchmark: Any, case: Case, point: Point, contender: str) -> None:
    made = workload(case, point, torch.float32, lambda reason: None)
    deviation = measure.deviations(made).get(contender)
    assert deviation is None or deviation.ok, f"off by {deviation.error:.1e}, allowed are {deviation.limit:.1e}"
    (chosen,) = (one for one in made.contenders if one.name == contender)
    with torch.set_grad_enabled(made.gradients):
        benchmark(chosen.call)
