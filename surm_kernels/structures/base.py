"""What a structure is: a linear map W(parameters) from in_features to out_features with few parameters.

A structure holds sizes and formulas, never parameters: layers, adapters and optimisers own the parameters and pass them
in, in the order of `parameter_shapes`. So one structure serves a layer, a frozen base with an update, or a test. Every
argument of a structure's constructor is its attribute; two structures of the same class and arguments are equal.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import widened
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops.stochastic import stochastic_sum
from surm_kernels.rounding import StochasticRounding


class Structure(ABC):
    """A family of out_features x in_features matrices.

    A subclass sets `initialisations` and defines the abstract methods; `nearest` where a projection is known.
    """

    #: Names `initialise` accepts; the first is the default.
    initialisations: tuple[str, ...]
    #: Names in `parameter_shapes` of what is never trained: a layer keeps them as buffers.
    constants: tuple[str, ...] = ()
    #: Whether products use tensors of the structure's own, as index maps are; torch.compile then has to look inside.
    holds_tensors = False

    def __init__(self, in_features: int, out_features: int) -> None:
        _checks.require_size("in_features", in_features)
        _checks.require_size("out_features", out_features)
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order the other methods take them."""

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for name, shape in self.parameter_shapes().items() if name not in self.constants)

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The constants, in their order, of an update of a frozen weight."""
        return ()

    def fingerprint(self, *constants: Tensor) -> Tensor:
        """64 numbers that tell constants apart, see `surm_kernels.siva.fingerprint`."""
        raise NotImplementedError(f"{type(self).__name__} has no constants")

    @torch.no_grad()
    def initialise(
        self, parameters: Sequence[Tensor], method: str | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Fills the parameters in place, by one of `initialisations` (the first if none is named)."""
        if method is None and self.initialisations:
            method = self.initialisations[0]
        if method not in self.initialisations:
            raise ValueError(f"method must be one of {', '.join(self.initialisations) or 'none'}, got {method!r}")
        self._initialise(tuple(parameters), method, generator)

    @abstractmethod
    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        """Fills the parameters; the method is one of `initialisations`."""

    @abstractmethod
    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """`base + scale * x @ W.T`, (..., in_features) to (..., out_features)."""

    def projection(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
        """What `rows` and `row_gradients` both need of tokens, where it is worth keeping from one for the other."""
        return None

    def rows(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        base: Tensor | None,
        scale: float,
        projection: Tensor | None = None,
    ) -> Tensor:
        """`linear` of tokens x (T, in_features) as a layer calls it that has checked everything, not recorded.

        The base is (out_features,), and all tensors have one type; the projection is that of x, if it is at hand. The
        result is a contiguous tensor of its own, which the layer goes on to change.
        """
        y = self.linear(x, *parameters, base=base, scale=scale)
        storage = y.untyped_storage()._cdata  # fake tensors have it, unlike data_ptr
        given = (x, *parameters) if base is None else (x, base, *parameters)
        own = y.is_contiguous() and all(tensor.untyped_storage()._cdata != storage for tensor in given)
        return y if own else y.clone(memory_format=torch.contiguous_format)

    @abstractmethod
    def dense(self, *parameters: Tensor) -> Tensor:
        """The matrix W, (out_features, in_features)."""

    def gradients(
        self, g: Tensor, x: Tensor, *parameters: Tensor, scale: float = 1.0, input_gradient: bool = True
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `scale * <g, x @ W.T>` with respect to x and to each parameter, themselves not recorded.

        Args:
            g: gradient of the output, (..., out_features), like x in type and leading shape.
            x: tokens, (..., in_features).
            parameters: in the order of `parameter_shapes`.
            scale: factor of the product.
            input_gradient: whether that of x is wanted; it is None otherwise, as those of constants are.

        Nobody else has the gradient of x. This one lets autograd differentiate `linear`, at the price of a product that
        nobody needs.
        """
        wanted = [input_gradient, *(name not in self.constants for name in self.parameter_shapes())]
        with torch.enable_grad(), without_autocast(x):
            leaves = [t.detach().requires_grad_(need) for t, need in zip((x, *parameters), wanted, strict=True)]
            y = self.linear(leaves[0], *leaves[1:], scale=scale)
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(y, inputs, g, materialize_grads=True))
        x_gradient, *inner = (next(found) if need else None for need in wanted)
        if x_gradient is not None and x_gradient.untyped_storage()._cdata == g.untyped_storage()._cdata:
            x_gradient = x_gradient.clone()
        return x_gradient, *inner

    @property
    def by_formula(self) -> bool:
        """Whether `row_gradients` takes a kernel and a formula, else autograd over the whole product."""
        return False

    def row_gradients(
        self,
        g: Tensor,
        x: Tensor,
        parameters: Sequence[Tensor],
        scale: float,
        input_gradient: bool,
        projection: Tensor | None = None,
    ) -> Sequence[Tensor | None]:
        """`gradients` of tokens in rows, for a layer that has checked everything and records nothing."""
        return self.gradients(g, x, *parameters, scale=scale, input_gradient=input_gradient)

    @torch.no_grad()
    def merge(
        self,
        weight: Tensor,
        *parameters: Tensor,
        scale: float = 1.0,
        out: Tensor | None = None,
        rounding: StochasticRounding | None = None,
    ) -> Tensor:
        """`weight + scale * W`, not recorded, in `out` where it is given, else in a new tensor like `weight`.

        The sum is taken in float32 at least and rounded once, to the type of the result; `out` may be `weight`. To 16
        bits it may be rounded stochastically, else it is to nearest.
        """
        result = torch.empty_like(weight) if out is None else out
        update = self.wide_dense(*parameters)
        if rounding is None:
            return torch.add(weight, update, alpha=scale, out=result)
        stochastic_sum(weight, (scale * update).float(), rounding.key, result)
        return result

    def kept(self, *parameters: Tensor) -> Callable[[Tensor, Tensor | None, float], Tensor] | None:
        """The product `(x, base, scale)` -> `base + scale * x @ W.T` for parameters that do not change, not recorded.

        What it needs of the parameters, such as their spectrum, is computed here, once, for this device and process and
        for tokens of the parameters' type. None where nothing would be gained.
        """
        return None

    def token_work(self) -> float:
        """Multiplications and additions, nominally, of the product of one token; for the choice of a strategy."""
        return self.in_features * self.out_features

    def merge_work(self) -> float:
        """Multiplications and additions, nominally, of forming W."""
        return self.in_features * self.out_features

    def wide_dense(self, *parameters: Tensor) -> Tensor:
        """`dense` in float32 at least, not rounded to the type of the parameters."""
        return self.dense(*(widened(parameter) for parameter in parameters))

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The parameters of the matrix nearest to `weight` in Frobenius norm."""
        raise NotImplementedError(f"the nearest {type(self).__name__} to a matrix has no known formula")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What makes this structure: the arguments of its constructor, with what a default of None came to be."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """The arguments that make this structure, as its repr and a layer's repr show them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value is not None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and other._key == self._key)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return tuple(self.arguments.values())

    @cached_property
    def _hash(self) -> int:
        return hash((type(self), self._key))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is found again: the hash of a string differs from process to process."""
        own = type(self)
        return {n: value for n, value in self.__dict__.items() if type(getattr(own, n, None)) is not cached_property}

    def _named(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.parameter_shapes(), parameters, strict=True))

    def _check_weight(self, weight: Tensor) -> None:
        _checks.require_floating("weight", weight)
        if weight.shape != (self.out_features, self.in_features):
            wanted = (self.out_features, self.in_features)
            raise ValueError(f"weight must have shape {wanted}, got {tuple(weight.shape)}")


class TiedEntries(Structure):
    """A structure with one parameter, of which every entry of W is a value, up to its sign.

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" starts from W = 0.
    """

    initialisations = ("layer", "paper")

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        (values,) = parameters
        bound = 1 / math.sqrt(self.in_features) if method == "layer" else 0
        values.uniform_(-bound, bound, generator=generator)


def initialise_factors(
    left: Tensor, right: Tensor, method: str, terms: float, generator: torch.Generator | None
) -> None:
    """Of a bilinear structure: for "paper" left = 0 and right ~ N(0, 0.02^2), else both uniform for `terms` terms."""
    if method == "paper":
        left.zero_()
        right.normal_(0, 0.02, generator=generator)
    else:
        bound = bilinear_bound(terms)
        left.uniform_(-bound, bound, generator=generator)
        right.uniform_(-bound, bound, generator=generator)


def bilinear_bound(terms: float) -> float:
    """The bound of uniform g and h for which an output, a sum of `terms` products g h x, varies as in torch.nn.Linear.

    x of variance 1 gives the output the variance terms (bound^2 / 3)^2, which is to be 1/3.
    """
    return (3 / terms) ** 0.25


def tied_means(dense: Callable[[Tensor], Tensor], size: Sequence[int], weight: Tensor) -> Tensor:
    """The parameter whose matrix is nearest to weight, where each entry of the matrix is one value of the parameter.

    A value becomes the mean over the entries it fills, 0 where there is none: the adjoint of `dense`, applied to the
    weight for the sums and to ones for their lengths.
    """
    inside = widened(weight)  # so that 16-bit means are rounded once
    with torch.inference_mode(False), torch.enable_grad():
        parameter = inside.new_zeros(size, requires_grad=True)
        matrix = dense(parameter)
    sums, entries = (
        torch.autograd.grad(matrix, parameter, w, retain_graph=True)[0] for w in (inside, torch.ones_like(inside))
    )
    return (sums / entries.clamp(min=1)).to(weight.dtype)
