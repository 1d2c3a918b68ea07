"""Kronecker products: `W = A ⊗ B`, numpy.kron(A, B)."""

import math

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels._widening import widened
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import initialise_factors
from surm_kernels.structures.primitive import PrimitiveStructure


class Kronecker(PrimitiveStructure):
    """The Kronecker product of A (p, q) and B (r, s), with p r = out_features and q s = in_features.

    `left_shape` is (p, q). By default p is the least divisor of out_features not below its square root, q the greatest
    divisor of in_features not above its root: 32 x 24 and 24 x 32 at 768, as SURM (arXiv 2406.17740) has it.

    Initialisations: "layer" has the output variance of torch.nn.Linear; with W = 0, "paper" is A = 0 and
    B ~ N(0, 0.02^2), "repo" is A by Kaiming's uniform rule and B = 0.
    """

    initialisations = ("layer", "paper", "repo")

    def __init__(self, in_features: int, out_features: int, left_shape: tuple[int, int] | None = None) -> None:
        super().__init__(in_features, out_features)
        if left_shape is None:
            left_shape = (out_features // _divisor_below_root(out_features), _divisor_below_root(in_features))
        if not isinstance(left_shape, (tuple, list)) or len(left_shape) != 2:
            raise ValueError(f"left_shape must be a pair (p, q), got {left_shape!r}")
        rows, columns = left_shape
        _checks.require_size("left_shape[0]", rows)
        _checks.require_size("left_shape[1]", columns)
        if out_features % rows or in_features % columns:
            raise ValueError(
                f"left_shape must divide (out_features, in_features), "
                f"got {(rows, columns)} for {(out_features, in_features)}"
            )
        self.left_shape = (rows, columns)
        self.right_shape = (out_features // rows, in_features // columns)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": self.left_shape, "B": self.right_shape}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        A, B = parameters
        if method == "repo":
            bound = 1 / math.sqrt(A.shape[1])
            A.uniform_(-bound, bound, generator=generator)
            B.zero_()
        else:
            initialise_factors(A, B, method, self.in_features, generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        return _matrices.kronecker(*parameters)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The leading singular pair of the rearranged weight, one row a block (Van Loan and Pitsianis, 1993)."""
        self._check_weight(weight)
        inside = widened(weight)
        (p, q), (r, s) = self.left_shape, self.right_shape
        rearranged = inside.view(p, r, q, s).transpose(1, 2).reshape(p * q, r * s)
        U, S, V = torch.linalg.svd(rearranged, full_matrices=False)
        root = S[0].sqrt()
        A, B = (root * U[:, 0]).view(p, q), (root * V[0]).view(r, s)
        return A.to(weight.dtype), B.to(weight.dtype)


def _divisor_below_root(number: int) -> int:
    """The greatest divisor of a number not above its square root."""
    return next(d for d in range(math.isqrt(number), 0, -1) if number % d == 0)
