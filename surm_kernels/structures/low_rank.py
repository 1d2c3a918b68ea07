"""Low rank matrices: `W = B A`, as LoRA (arXiv 2106.09685) adapts weights."""

import math

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels import _checks, _matrices
from surm_kernels._widening import widened
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import bilinear_bound
from surm_kernels.structures.primitive import PrimitiveStructure


class LowRank(PrimitiveStructure):
    """W = B A, the product of B (out_features, rank) and A (rank, in_features).

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" is LoRA's, with W = 0 by B = 0 and A
    as torch.nn.Linear draws its weight.
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        _checks.require_size("rank", rank)
        self.rank = rank

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.rank, self.in_features), "B": (self.out_features, self.rank)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        A, B = parameters
        if method == "paper":
            bound = 1 / math.sqrt(self.in_features)
            A.uniform_(-bound, bound, generator=generator)
            B.zero_()
        else:
            bound = bilinear_bound(A.numel())
            A.uniform_(-bound, bound, generator=generator)
            B.uniform_(-bound, bound, generator=generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        return _matrices.low_rank(*parameters)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The leading singular triples (Eckart and Young, 1936), their values split evenly between A and B."""
        self._check_weight(weight)
        inside = widened(weight)
        U, S, V = torch.linalg.svd(inside, full_matrices=False)
        root = S[: self.rank].sqrt()
        missing = self.rank - len(root)  # a rank above that of any weight
        A = torch_functional.pad(root[:, None] * V[: self.rank], (0, 0, 0, missing))
        B = torch_functional.pad(U[:, : self.rank] * root, (0, missing))
        return A.to(weight.dtype), B.to(weight.dtype)
