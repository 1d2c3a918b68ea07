"""What an adapter after a layer adds to the layer's outputs, in the place where other adapters have a structure."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from surm_kernels.structures import Structure

NO_MATRIX = (
    'an adapter of form "adapter" adds GELU(W X) + b to the outputs X of its layer, which no change of a weight does: '
    'it can neither be merged nor become LoRA. unload() takes it off; one of form "lora" can be merged.'
)


class Activated(Structure):
    """GELU(x W^T) + b for the W of a structure.

    It has parameters, a start and a product as a structure has, and no matrix. Its parameters are those of the
    structure and then, with a bias, `b`, which starts from 0.

    Args:
        structure: of W, which trains all of its parameters.
        bias: whether there is b.
    """

    def __init__(self, structure: Structure, bias: bool = True) -> None:
        super().__init__(structure.in_features, structure.out_features)
        self.structure = structure
        self.bias = bias
        self.initialisations = structure.initialisations
        self.holds_tensors = structure.holds_tensors

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**self.structure.parameter_shapes(), **({"b": (self.out_features,)} if self.bias else {})}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        inner, b = self._split(parameters)
        self.structure.initialise(inner, method, generator=generator)
        if b is not None:
            b.zero_()

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """`base + scale * GELU(x @ W.T) + b`."""
        inner, b = self._split(parameters)
        return _added(base, F.gelu(self.structure.linear(x, *inner)), b, scale)

    def dense(self, *parameters: Tensor) -> Tensor:
        raise ValueError(NO_MATRIX)

    def kept(self, *parameters: Tensor) -> Callable[[Tensor, Tensor | None, float], Tensor] | None:
        inner, b = self._split(parameters)
        inside = self.structure.kept(*inner)
        if inside is None:
            return None

        def product(x: Tensor, base: Tensor | None, scale: float) -> Tensor:
            return _added(base, F.gelu(inside(x, None, 1.0)), b, scale)

        return product

    def token_work(self) -> float:
        return self.structure.token_work()

    def _split(self, parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor | None]:
        """Those of W, and b."""
        return (parameters[:-1], parameters[-1]) if self.bias else (parameters, None)


def _added(base: Tensor | None, activated: Tensor, b: Tensor | None, scale: float) -> Tensor:
    """`base + scale * activated + b`; b, which may be wider under autocast, does not decide the type."""
    y = scale * activated if base is None else torch.add(base, activated, alpha=scale)
    return y if b is None else y + b.to(y.dtype)
