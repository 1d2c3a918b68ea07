"""What structures share whose map is one primitive: product, matrix, gradients and merging follow from it."""

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from surm_kernels._widening import wide_type, widened
from surm_kernels.functional._product import Wide, cast, composed, product
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops._primitive import Primitive, Product
from surm_kernels.structures.base import Structure


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
        inside = x.dtype if self.wide == "nothing" else wide_type(x.dtype)
        rows, cotangents = x.reshape(1, -1, self.in_features), g.reshape(1, -1, self.out_features)
        if self.wide == "everything":
            rows, cotangents = rows.to(inside), cotangents.to(inside)
        if self._reshapes and all(parameter.dtype is inside for parameter in parameters):
            with torch.no_grad():
                w = self._only_primitive(*parameters)
                x_gradient, inner = w.gradients(cotangents, rows, scale, input_gradient)
            pairs = zip(inner, parameters, strict=True)
            return self._of(x, x_gradient), *(None if t is None else t.view(p.shape) for t, p in pairs)
        leaves = [p.detach().requires_grad_(train) for p, train in zip(parameters, self._trained, strict=True)]
        with torch.enable_grad(), without_autocast(x):
            recorded = self.primitive(*(cast(leaf, inside) for leaf in leaves))
        if recorded is None:
            return super().gradients(g, x, *parameters, scale=scale, input_gradient=input_gradient)
        with torch.no_grad():
            x_gradient, inner = recorded.gradients(cotangents, rows, scale, input_gradient)
        seeded = zip(recorded.arguments, inner, strict=True)
        outputs, seeds = zip(*((argument, t) for argument, t in seeded if t is not None), strict=True)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, seeds, materialize_grads=True))
        return self._of(x, x_gradient), *(next(found) if train else None for train in self._trained)

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
    def merge(self, weight: Tensor, *parameters: Tensor, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
        """`weight + scale * W` in one pass where the primitive has a kernel for it, see `Structure.merge`."""
        result = torch.empty_like(weight) if out is None else out
        w = self.wide_primitive(*parameters)
        if w is not None and w.merge(weight, scale, result):
            return result
        return super().merge(weight, *parameters, scale=scale, out=result)

    def wide_primitive(self, *parameters: Tensor) -> Primitive | None:
        """`primitive` in float32 at least."""
        return self.primitive(*(widened(parameter) for parameter in parameters))

    @torch.no_grad()
    def kept(self, *parameters: Tensor) -> Product | None:
        """The product by a spectrum computed once, where the primitive has one, see `Structure.kept`."""
        w = self.primitive(*parameters)
        operator = None if w is None else w.keep()
        if operator is None:
            return None
        sizes = self.out_features, self.in_features
        return lambda x, base, scale: composed(operator, x, {}, sizes, base, scale, wide="nothing")

    def token_work(self) -> float:
        return self._shape().work.token

    def merge_work(self) -> float:
        return self._shape().work.merge

    def _shape(self) -> Primitive:
        """The primitive of parameters without values."""
        return self._only_primitive(*self._placeholders())

    def _placeholders(self) -> list[Tensor]:
        """Parameters without values."""
        shapes = self.parameter_shapes().values()
        return [torch.empty(shape, dtype=torch.float32, device="meta") for shape in shapes]

    def _only_primitive(self, *parameters: Tensor) -> Primitive:
        """`primitive`, where W is one."""
        w = self.primitive(*parameters)
        assert w is not None
        return w

    def _of(self, x: Tensor, x_gradient: Tensor | None) -> Tensor | None:
        """The gradient of x in its shape and type."""
        return None if x_gradient is None else x_gradient.to(x.dtype).view(x.shape)
