"""Monarch matrices: two block-diagonal factors with a fixed permutation between them and one behind them."""

import math
from typing import Any

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import widened
from surm_kernels.structures.base import bilinear_bound
from surm_kernels.structures.composed import ComposedStructure


class Monarch(ComposedStructure):
    """`W = P' L P R` (Dao et al., Monarch, ICML 2022), m x n, with k = `blocks` blocks in R and q in L.

    R is (k, q, n / k), L is (q, m / q, k). P turns the k x q grid of what lies between into a q x k one, P' the
    q x (m / q) grid of outputs into an (m / q) x q one, so that
    `W[i q + b, a n / k + j] = L[b, i, a] R[a, b, j]`: q n + k m numbers.

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" has W = 0 by L = 0, with R uniform in
    ±1 / sqrt(n / k).

    Args:
        blocks: k, a divisor of in_features; by default the one nearest to its square root.
        inner_blocks: q, a divisor of out_features; by default k.
    """

    initialisations = ("layer", "paper")

    def __init__(
        self, in_features: int, out_features: int, blocks: int | None = None, inner_blocks: int | None = None
    ) -> None:
        super().__init__(in_features, out_features)
        self.blocks = _divisor_nearest_root(in_features) if blocks is None else blocks
        self.inner_blocks = self.blocks if inner_blocks is None else inner_blocks
        for name, divisor, whole_name, whole in (
            ("blocks", self.blocks, "in_features", in_features),
            ("inner_blocks", self.inner_blocks, "out_features", out_features),
        ):
            _checks.require_size(name, divisor)
            if whole % divisor:
                raise ValueError(f"{name} must divide {whole_name}, got {divisor} for {whole}")

    @classmethod
    def fitting(cls, in_features: int, out_features: int) -> "Monarch":
        """The one by default; where k does not divide out_features, q is the divisor nearest to its square root."""
        blocks = _divisor_nearest_root(in_features)
        inner = blocks if out_features % blocks == 0 else _divisor_nearest_root(out_features)
        return cls(in_features, out_features, blocks, inner)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        k, q = self.blocks, self.inner_blocks
        return {"L": (q, self.out_features // q, k), "R": (k, q, self.in_features // k)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        L, R = parameters
        if method == "paper":
            L.zero_()
            bound = R.shape[2] ** -0.5
        else:
            bound = bilinear_bound(self.in_features)
            L.uniform_(-bound, bound, generator=generator)
        R.uniform_(-bound, bound, generator=generator)

    def operator(self, rows: Tensor, *rest: Any) -> Tensor:
        L, R, base, scale = rest
        blocks = rows.squeeze(0).unflatten(1, (self.blocks, -1)).transpose(0, 1)
        between = torch.bmm(blocks, R.mT).permute(2, 1, 0)
        y = scale * torch.bmm(between, L.mT).permute(1, 2, 0).reshape(1, rows.shape[1], self.out_features)
        return y if base is None else base + y

    def dense(self, *parameters: Tensor) -> Tensor:
        L, R = (widened(parameter) for parameter in parameters)
        entries = L.transpose(0, 1)[..., None] * R.transpose(0, 1)
        return entries.reshape(self.out_features, self.in_features).to(parameters[0].dtype)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The leading singular pair of every L[b, :, a] R[a, b, :], a matrix of its own (Dao et al., theorem 1)."""
        self._check_weight(weight)
        k, q = self.blocks, self.inner_blocks
        parts = widened(weight).reshape(-1, q, k, self.in_features // k).permute(1, 2, 0, 3)
        U, S, V = torch.linalg.svd(parts, full_matrices=False)
        root = S[..., :1].sqrt()
        L, R = (root * U[..., 0]).transpose(1, 2), (root * V[..., 0, :]).transpose(0, 1)
        return L.to(weight.dtype), R.to(weight.dtype)

    def token_work(self) -> float:
        return self.inner_blocks * self.in_features + self.blocks * self.out_features

    def merge_work(self) -> float:
        return self.in_features * self.out_features


def _divisor_nearest_root(number: int) -> int:
    """The divisor nearest to the square root, the smaller of two."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - math.sqrt(number)))
