"""SURM's Toeplitz update (arXiv 2406.17740): the product of two symmetric Toeplitz matrices."""

from typing import Any

import torch
from torch import Tensor

from surm_kernels._widening import wide_type
from surm_kernels.functional._product import cast
from surm_kernels.ops._library import without_autocast
from surm_kernels.structures.composed import ComposedStructure
from surm_kernels.structures.symmetric_toeplitz import SymmetricToeplitz


class ToeplitzProduct(ComposedStructure):
    """T(t2) T(t1) with t1 and t2 (n,), both symmetric of size n = max(in_features, out_features), or its top left part.

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" has W = 0 by t1 = 0 and
    t2 ~ N(0, 0.02^2).
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        size = max(in_features, out_features)
        self.first = SymmetricToeplitz(in_features, size)
        self.second = SymmetricToeplitz(size, out_features)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        size = max(self.in_features, self.out_features)
        return {"t1": (size,), "t2": (size,)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        t1, t2 = parameters
        if method == "paper":
            t1.zero_()
            t2.normal_(0, 0.02, generator=generator)
        else:
            # The first product has the variance 1/3, which the second multiplies by n E[t2^2] = 1.
            self.first.initialise([t1], generator=generator)
            bound = (3 / t2.numel()) ** 0.5
            t2.uniform_(-bound, bound, generator=generator)

    def operator(self, rows: Tensor, *rest: Any) -> Tensor:
        t1, t2, base, scale = rest
        between = self.first.primitive(t1).product(rows, None, 1.0)
        return self.second.primitive(t2).product(between, base, scale)

    def gradients(
        self, g: Tensor, x: Tensor, *parameters: Tensor, scale: float = 1.0, input_gradient: bool = True
    ) -> tuple[Tensor | None, ...]:
        """The factors' own, with the tokens between them computed anew, see `Structure.gradients`."""
        t1, t2 = parameters
        wide = wide_type(x.dtype)
        with torch.no_grad(), without_autocast(x):
            rows, first, second = cast(x, wide), cast(t1, wide), cast(t2, wide)
            between = self.first.linear(rows, first)
            along, second_gradient = self.second.gradients(cast(g, wide), between, second, scale=scale)
            assert along is not None and second_gradient is not None
            of_x, first_gradient = self.first.gradients(along, rows, first, input_gradient=input_gradient)
            assert first_gradient is not None
            of_x = None if of_x is None else cast(of_x, x.dtype)
            return of_x, cast(first_gradient, t1.dtype), cast(second_gradient, t2.dtype)

    def token_work(self) -> float:
        return self.first.token_work() + self.second.token_work()
