"""A matrix W as what is needed to apply it: a form with its arguments and constants, and all that can be done with it.

Structures, functions and dense matrices say what W is in these terms, once (surm_kernels/_matrices.py), and everything
else follows.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

#: The product `(x, base, scale)` -> `base + scale * x @ W.T` of a W that is kept.
Product = Callable[[Tensor, Tensor | None, float], Tensor]


class Work(NamedTuple):
    """Multiplications and additions, nominally: of the product of one token, and of forming W."""

    token: float
    merge: float


class Primitive(NamedTuple):
    """The matrix W(arguments) of a form, `sizes` = (outputs, inputs).

    Tokens are (1, T, inputs), in the type of the arguments or, where the form's operators take that, of 16 bits beside
    arguments in float32.
    """

    form: "Form"
    arguments: tuple[Tensor, ...]
    constants: tuple[Any, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        return self.form.sizes(self)

    def product(self, x: Tensor, base: Tensor | None, scale: float) -> Tensor:
        """`base + scale * x @ W.T`, (1, T, outputs), differentiable."""
        return self.form.product(self, x, base, scale)

    def dense(self) -> Tensor:
        """W, (outputs, inputs), in the type of the arguments, differentiable; every entry is rounded once."""
        return self.form.dense(self)

    def gradients(
        self, g: Tensor, x: Tensor, scale: float, input_gradient: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """Those of `scale * <g, x @ W.T>` with respect to x, None unless wanted, and to the arguments; not recorded.

        None stands for an argument that the form never trains.
        """
        return self.form.gradients(self, g, x, scale, input_gradient)

    def merge(self, weight: Tensor, scale: float, key: Tensor | None, out: Tensor) -> bool:
        """`out = weight + scale * W` in one pass, rounded once, out may be weight; False, and nothing done, else.

        Else: there is no such kernel for the form, or not for these types and strides. Rounded to nearest or, to 16
        bits, stochastically by the key of a `StochasticRounding`. Not recorded.
        """
        return self.form.merge(self, weight, scale, key, out)

    def keep(self) -> Product | None:
        """The product with what it needs of the arguments computed once, not recorded; None if that gains nothing."""
        return self.form.keep(self)

    @property
    def work(self) -> Work:
        return self.form.work(self)


class Form(ABC):
    """A family of matrices, by what its kernels do; the methods are those of `Primitive`."""

    @abstractmethod
    def sizes(self, w: Primitive) -> tuple[int, int]: ...

    @abstractmethod
    def product(self, w: Primitive, x: Tensor, base: Tensor | None, scale: float) -> Tensor: ...

    @abstractmethod
    def dense(self, w: Primitive) -> Tensor: ...

    @abstractmethod
    def gradients(
        self, w: Primitive, g: Tensor, x: Tensor, scale: float, input_gradient: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]: ...

    def merge(self, w: Primitive, weight: Tensor, scale: float, key: Tensor | None, out: Tensor) -> bool:
        return False

    def keep(self, w: Primitive) -> Product | None:
        return None

    def work(self, w: Primitive) -> Work:
        outputs, inputs = w.sizes
        return Work(outputs * inputs, outputs * inputs)


def transform_work(length: int) -> float:
    """Multiplications and additions, nominally, of a transform of real values there and back."""
    return length * math.log2(2 * length)
