"""What structures share whose map is one primitive: product, matrix, gradients and merging follow from it."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from surm_kernels._widening import wide_type, widened
from surm_kernels.functional._product import Wide, by_rows, cast, product
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops._outputs import in_shape, resized
from surm_kernels.ops._primitive import Primitive, Product
from surm_kernels.ops.factored_grid import FactoredGrid
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures.base import Structure

#: From the gradients of a primitive's arguments to those of the parameters.
Pullback = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]


class PrimitiveStructure(Structure):
    """A structure with W = W(arguments) of one primitive, whose arguments are simple functions of the parameters."""

    @property
    def wide(self) -> Wide:
        """What reaches the primitive in float32 where tokens have 16 bits, see `functional._product.Wide`."""
        return "nothing"

    @abstractmethod
    def primitive(self, *parameters: Tensor) -> Primitive | None:
        """W, its arguments by differentiable operations; None where it takes more than one primitive."""

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return product(self._only_primitive, x, self._named(parameters), base, scale, self.wide)

    def factored(self, *parameters: Tensor) -> FactoredGrid | None:
        """W as one grid of the parameters or of their product, None where it is none: then a layer's call is short."""
        return None

    def rows(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        base: Tensor | None,
        scale: float,
        projection: Tensor | None = None,
    ) -> Tensor:
        if (grid := self.factored(*parameters)) is not None:
            return grid.rows(x, base, scale)
        dtype = x.dtype
        if dtype.itemsize > 2 or self.wide == "nothing":
            w = self.primitive(*parameters)
            return super().rows(x, parameters, base, scale) if w is None else by_rows(w.product, x, base, scale)
        w = self._only_primitive(*map(widened, parameters))
        if self.wide == "everything":
            x, base = widened(x), None if base is None else widened(base)
        return by_rows(w.product, x, base, scale, dtype)

    def dense(self, *parameters: Tensor) -> Tensor:
        if self.wide == "nothing":
            return self._only_primitive(*parameters).dense()
        return self.wide_dense(*parameters).to(parameters[0].dtype)

    def wide_dense(self, *parameters: Tensor) -> Tensor:
        return self._only_primitive(*map(widened, parameters)).dense()

    def gradients(
        self, g: Tensor, x: Tensor, *parameters: Tensor, scale: float = 1.0, input_gradient: bool = True
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `scale * <g, x @ W.T>` by the primitive's own operators, see `Structure.gradients`."""
        rows, cotangents = x.reshape(-1, self.in_features), g.reshape(-1, self.out_features)
        with torch.no_grad():
            x_gradient, *inner = self.row_gradients(cotangents, rows, parameters, scale, input_gradient)
        return None if x_gradient is None else in_shape(x_gradient, *x.shape), *inner

    def row_gradients(
        self,
        g: Tensor,
        x: Tensor,
        parameters: Sequence[Tensor],
        scale: float,
        input_gradient: bool,
        projection: Tensor | None = None,
    ) -> Sequence[Tensor | None]:
        dtype = x.dtype
        repeats = dtype.itemsize <= 2 and self.wide != "nothing"
        values = [cast(parameter, wide_type(dtype) if repeats else dtype) for parameter in parameters]
        if (grid := self.factored(*values)) is not None:
            x_gradient, *inner = grid.gradients(g, x, scale, input_gradient)
        elif (differentiated := self.differentiated(*values)) is not None:
            if repeats and self.wide == "everything":
                g, x = widened(g), widened(x)
            w, pullback = differentiated
            x_gradient, of_arguments = w.gradients(g.unsqueeze(0), x.unsqueeze(0), scale, input_gradient)
            if x_gradient is not None:
                x_gradient = resized(cast(x_gradient, dtype), *x.shape)
            inner = list(pullback(of_arguments))
        else:
            return super().gradients(g, x, *parameters, scale=scale, input_gradient=input_gradient)
        pairs = zip(inner, parameters, strict=True)
        return x_gradient, *[None if t is None else cast(t, parameter.dtype) for t, parameter in pairs]

    @cached_property
    def by_formula(self) -> bool:
        return type(self).differentiated is not PrimitiveStructure.differentiated or self._reshapes

    def differentiated(self, *parameters: Tensor) -> tuple[Primitive, Pullback] | None:
        """W, not recorded, with the way back to the parameters; None where it takes more than one primitive.

        That way takes the gradients of the primitive's arguments and gives those of the parameters, None of constants.
        This one leaves it to autograd, which takes longer than a small product.
        """
        if self._reshapes:
            w = self._only_primitive(*parameters)
            shapes = [parameter.shape for parameter in parameters]
            return w, lambda inner: [
                None if t is None else t.view(shape) for t, shape in zip(inner, shapes, strict=True)
            ]
        leaves = [p.detach().requires_grad_(train) for p, train in zip(parameters, self._trained, strict=True)]
        with torch.enable_grad(), without_autocast(leaves[0]):
            recorded = self.primitive(*leaves)
        if recorded is None:
            return None

        def pullback(inner: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            seeded = [(argument, t) for argument, t in zip(recorded.arguments, inner, strict=True) if t is not None]
            outputs, seeds = zip(*seeded, strict=True)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, seeds, materialize_grads=True))
            return [next(found) if train else None for train in self._trained]

        return recorded, pullback

    @cached_property
    def _reshapes(self) -> bool:
        """Whether the primitive's arguments are the parameters in other shapes, so that gradients take theirs back."""
        parameters = self._placeholders()
        w = self.primitive(*parameters)
        return (
            w is not None
            and len(w.arguments) == len(parameters)
            and all(
                argument.numel() == parameter.numel() and (argument is parameter or argument._base is parameter)
                for argument, parameter in zip(w.arguments, parameters, strict=True)
            )
        )

    @cached_property
    def _trained(self) -> tuple[bool, ...]:
        """Of every parameter, whether it is no constant."""
        return tuple(name not in self.constants for name in self.parameter_shapes())

    @torch.no_grad()
    def merge(
        self,
        weight: Tensor,
        *parameters: Tensor,
        scale: float = 1.0,
        out: Tensor | None = None,
        rounding: StochasticRounding | None = None,
    ) -> Tensor:
        """`weight + scale * W` in one pass where the primitive has a kernel for it, see `Structure.merge`."""
        result = torch.empty_like(weight) if out is None else out
        w = self.wide_primitive(*parameters)
        if w is not None and w.merge(weight, scale, None if rounding is None else rounding.key, result):
            return result
        return super().merge(weight, *parameters, scale=scale, out=result, rounding=rounding)

    def wide_primitive(self, *parameters: Tensor) -> Primitive | None:
        """`primitive` in float32 at least."""
        return self.primitive(*(widened(parameter) for parameter in parameters))

    @torch.no_grad()
    def kept(self, *parameters: Tensor) -> Product | None:
        """The product by a spectrum computed once, where the primitive has one, see `Structure.kept`."""
        w = self.primitive(*parameters)
        operator = None if w is None else w.keep()
        return None if operator is None else partial(by_rows, operator)

    def token_work(self) -> float:
        return self._shape().work.token

    def merge_work(self) -> float:
        return self._shape().work.merge

    def _shape(self) -> Primitive:
        """The primitive of some parameters."""
        return self._only_primitive(*self._placeholders())

    def _placeholders(self) -> list[Tensor]:
        """Parameters of distinct values, to look at shapes; arithmetic on the meta device imports torch's compiler."""
        shapes = self.parameter_shapes().values()
        counts = [math.prod(shape) for shape in shapes]
        values = torch.arange(sum(counts), dtype=torch.float32, device="cpu").split(counts)
        return [one.reshape(shape).clone() for one, shape in zip(values, shapes, strict=True)]

    def _only_primitive(self, *parameters: Tensor) -> Primitive:
        """`primitive`, where W is one."""
        w = self.primitive(*parameters)
        assert w is not None
        return w
