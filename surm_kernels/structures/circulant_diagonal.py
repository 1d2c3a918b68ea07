"""Interleaved circulant and diagonal factors: `W = C(c_1) diag(d_1) C(c_2)` and longer chains."""

from typing import Any

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.ops._primitive import transform_work
from surm_kernels.structures.composed import ComposedStructure


class CirculantDiagonal(ComposedStructure):
    """C(c[0]) diag(d[0]) C(c[1]) diag(d[1]) … with `factors` circulants, of which CDVFT (IJCAI 2025) makes updates.

    c is (factors, n) and d (factors - 1, n) with n = max(in_features, out_features), and the map is the top left part
    of the square: (2 factors - 1) n numbers.

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" has W = 0 by c[0] = 0, with the other
    circulants N(0, 0.02^2); d = 1 in both.
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int, factors: int = 2) -> None:
        super().__init__(in_features, out_features)
        _checks.require_int("factors", factors)
        if factors < 2:
            raise ValueError(f"factors must be at least 2, got {factors}")
        self.factors = factors

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        size = max(self.in_features, self.out_features)
        return {"c": (self.factors, size), "d": (self.factors - 1, size)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        c, d = parameters
        d.fill_(1)
        if method == "paper":
            c.normal_(0, 0.02, generator=generator)
            c[0].zero_()
            return
        # A circulant of entries of variance v gives its outputs n v times the variance of its n inputs.
        bound = (3 / c.shape[1]) ** 0.5
        c.uniform_(-bound, bound, generator=generator)
        c[-1].mul_((c.shape[1] / self.in_features) ** 0.5)
        c[0].mul_(3**-0.5)

    def operator(self, rows: Tensor, *rest: Any) -> Tensor:
        c, d, base, scale = rest
        size = c.shape[1]
        y = _matrices.circulant(c[-1], size, self.in_features).product(rows, None, 1.0)
        for place in range(self.factors - 2, 0, -1):
            y = _matrices.circulant(c[place]).product(d[place] * y, None, 1.0)
        return _matrices.circulant(c[0], self.out_features, size).product(d[0] * y, base, scale)

    def token_work(self) -> float:
        return 2 * self.factors * transform_work(max(self.in_features, self.out_features))
