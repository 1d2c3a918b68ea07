"""Hankel-like matrices: `W = sum_l Z_1(g_l) Z_0(h_l) J`."""

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import initialise_factors
from surm_kernels.structures.primitive import PrimitiveStructure


class HankelLike(PrimitiveStructure):
    """The matrix of rank `rank` under the displacement Z_1 W - W Z_0^T, with generators G and H of shape (rank, n).

    n = max(in_features, out_features), and the map is the top left part of the square.

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" has W = 0 by G = 0 and
    H ~ N(0, 0.02^2).
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        _checks.require_size("rank", rank)
        self.rank = rank

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.rank, max(self.in_features, self.out_features))
        return {"G": shape, "H": shape}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        G, H = parameters
        # Z_0(h) J is triangular: column j meets j + 1 values of a generator.
        terms = self.rank * self.in_features * (self.in_features + 1) / 2
        initialise_factors(G, H, method, terms, generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        G, H = parameters
        return _matrices.hankel_like(G, H, self.out_features, self.in_features)

    @property
    def wide(self) -> Wide:
        return "everything"
