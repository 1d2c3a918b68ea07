"""Vandermonde-like matrices: `W = sum_l diag(g_l) V(v) Z_0(h_l)^T`."""

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import initialise_factors
from surm_kernels.structures.primitive import PrimitiveStructure
from surm_kernels.structures.vandermonde import LARGEST_NODE


class VandermondeLike(PrimitiveStructure):
    """The rectangular matrix with W - D_v W Z_0^T of rank `rank`: nodes v (m,), generators G (rank, m), H (rank, n).

    Initialisations, both with nodes uniform in (-0.7, 0.7): "layer" has the output variance of torch.nn.Linear,
    "paper" has W = 0 by G = 0 and H ~ N(0, 0.02^2).
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        _checks.require_size("rank", rank)
        self.rank = rank

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        rank = self.rank
        return {"v": (self.out_features,), "G": (rank, self.out_features), "H": (rank, self.in_features)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        v, G, H = parameters
        v.uniform_(-LARGEST_NODE, LARGEST_NODE, generator=generator)
        initialise_factors(G, H, method, H.numel(), generator)
        if method == "layer":
            G.div_(self._spread(v).to(G.dtype))

    def _spread(self, v: Tensor) -> Tensor:
        """The deviation of an output with node v over that with node 0, the root of sum_k (1 - k / n) v^(2 k)."""
        n, square = self.in_features, v.double().square()
        return (1 / (1 - square) - square * (1 - square**n) / (n * (1 - square).square())).sqrt()

    def primitive(self, *parameters: Tensor) -> Primitive:
        return _matrices.vandermonde_like(*parameters)

    @property
    def wide(self) -> Wide:
        return "parameters"
