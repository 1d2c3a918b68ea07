"""Vandermonde matrices: `W[i, j] = v[i] ** j`."""

import torch
from torch import Tensor

from surm_kernels import _matrices
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.primitive import PrimitiveStructure

#: Nodes start within this distance of 0, where powers neither overflow nor crowd.
LARGEST_NODE = 0.7


class Vandermonde(PrimitiveStructure):
    """The rectangular Vandermonde matrix with nodes v, (out_features,).

    Initialisation: "layer" draws the nodes uniformly from (-0.7, 0.7). The first column is always 1, so there is no
    W = 0, and an output varies by sum_j v^(2 j) = 1 / (1 - v^2) for x of variance 1: between 1 and 1.96, not 1/3.
    """

    initialisations = ("layer",)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"v": (self.out_features,)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        (v,) = parameters
        v.uniform_(-LARGEST_NODE, LARGEST_NODE, generator=generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        (v,) = parameters
        return _matrices.vandermonde(v, self.in_features)

    @property
    def wide(self) -> Wide:
        return "parameters"
