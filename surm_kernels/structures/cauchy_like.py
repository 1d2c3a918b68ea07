"""Cauchy-like matrices: `W[i, j] = sum_l g_l[i] h_l[j] / (v[i] - u[j])`."""

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import initialise_factors
from surm_kernels.structures.primitive import PrimitiveStructure


class CauchyLike(PrimitiveStructure):
    """The rectangular matrix with D_v W - W D_u of rank `rank`: nodes v (m,) and u (n,), G (rank, m), H (rank, n).

    Initialisations, both with v uniform in (1, 2) and u in (-2, -1), so that training does not bring a v to a u:
    "layer" has the output variance of torch.nn.Linear, "paper" has W = 0 by G = 0 and H ~ N(0, 0.02^2).
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        _checks.require_size("rank", rank)
        self.rank = rank

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        m, n = self.out_features, self.in_features
        return {"v": (m,), "u": (n,), "G": (self.rank, m), "H": (self.rank, n)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        v, u, G, H = parameters
        v.uniform_(1, 2, generator=generator)
        u.uniform_(-2, -1, generator=generator)
        initialise_factors(G, H, method, H.numel(), generator)
        if method == "layer":
            G.mul_(((v + 1) * (v + 2)).sqrt())  # 1 / (v - u)^2 is on average 1 / ((v + 1) (v + 2))

    def primitive(self, *parameters: Tensor) -> Primitive:
        return _matrices.cauchy_like(*parameters)

    @property
    def wide(self) -> Wide:
        return "parameters"
