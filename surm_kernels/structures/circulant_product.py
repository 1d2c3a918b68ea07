"""SURM's circulant update (arXiv 2406.17740): the elementwise product of two circulant matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.ops.factored_grid import FactoredGrid
from surm_kernels.structures.circulant import Circulant
from surm_kernels.structures.primitive import PrimitiveStructure, Pullback


class CirculantProduct(PrimitiveStructure):
    """C(r1) * C(r2) = C(r1 * r2), elementwise, whole or in blocks (SURM, arXiv 2406.17740); shapes as in Circulant.

    Initialisations, both with W = 0: "paper" is r1 = 0 and r2 ~ N(0, 0.02^2), "repo" r2 ~ N(0, 1) as in the
    authors' code.
    """

    initialisations = ("paper", "repo")

    def __init__(self, in_features: int, out_features: int, block_size: int | None = None) -> None:
        super().__init__(in_features, out_features)
        self.block_size = block_size
        self.circulant = Circulant(in_features, out_features, block_size)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        (shape,) = self.circulant.parameter_shapes().values()
        return {"r1": shape, "r2": shape}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        r1, r2 = parameters
        r1.zero_()
        r2.normal_(0, 0.02 if method == "paper" else 1, generator=generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        r1, r2 = parameters
        return self.circulant.primitive(r1 * r2)

    def factored(self, *parameters: Tensor) -> FactoredGrid | None:
        r1, r2 = parameters
        return None if self.circulant.is_cut else FactoredGrid(r1, r2, CIRCULANT, r1.shape[-1])

    def differentiated(self, *parameters: Tensor) -> tuple[Primitive, Pullback] | None:
        r1, r2 = parameters
        differentiated = self.circulant.differentiated(r1 * r2)
        assert differentiated is not None
        w, of_product = differentiated

        def pullback(inner: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            (gradient,) = of_product(inner)
            assert gradient is not None
            return gradient * r2, gradient * r1

        return w, pullback

    @property
    def wide(self) -> Wide:
        return self.circulant.wide

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The nearest circulant, split into factors of equal magnitude."""
        (c,) = self.circulant.nearest(weight)
        root = c.abs().sqrt()
        return c.sign() * root, root
