"""Toeplitz-like matrices, the general low displacement rank of SURM and HyDRA: `W = sum_l Z_1(g_l) Z_-1(h_l)`."""

from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import initialise_factors
from surm_kernels.structures.least_squares import nearest_generators
from surm_kernels.structures.primitive import PrimitiveStructure


class ToeplitzLike(PrimitiveStructure):
    """The matrix of displacement rank `rank` with generators G and H of shape (rank, n).

    n = max(in_features, out_features), and the map is the top left part of the square.

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" has W = 0 by G = 0 and
    H ~ N(0, 0.02^2) (SURM, arXiv 2406.17740).
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
        initialise_factors(G, H, method, self.in_features * G.numel(), generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        G, H = parameters
        return _matrices.toeplitz_like(G, H, self.out_features, self.in_features)

    def nearest(
        self,
        weight: Tensor,
        *,
        iterations: int = 100,
        tolerance: float = 1e-4,
        progress: Callable[[int, float], None] | None = None,
    ) -> tuple[Tensor, ...]:
        """A matrix of this structure near to `weight`, by alternating least squares, for square matrices.

        It starts from the leading singular vectors of the displacement Z_1 W - W Z_-1, which give back a weight of
        the structure, then solves for G and for H in turn (structures/least_squares.py), in float64. The distance never
        increases; the result is a local optimum.

        Args:
            weight: (n, n).
            iterations: at most so many rounds.
            tolerance: ends them when a round lowers the relative distance by less than this part of it.
            progress: called with the number of rounds and the relative distance ||W - weight|| / ||weight||.
        """
        self._check_weight(weight)
        if self.in_features != self.out_features:
            raise NotImplementedError("the nearest rectangular ToeplitzLike to a matrix has no known formula")
        G, H = nearest_generators(weight, self.rank, iterations, tolerance, progress)
        return G.to(weight.dtype), H.to(weight.dtype)
