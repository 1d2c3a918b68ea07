"""What all products share: checks of x, base and scale, promotion, autocast, and the way to operator form and back."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import wide_type
from surm_kernels.ops import _mode
from surm_kernels.ops._outputs import in_shape, resized
from surm_kernels.ops._primitive import Primitive

#: What reaches an operator in float32 where the answer has 16 bits. "repeated" parameters fill several places of an
#: argument: they are widened, so that their gradient is rounded once, and everything is where theirs is the only
#: gradient, since a pullback knows the type of x alone.
Wide = Literal["nothing", "parameters", "repeated", "everything"]


class Operator(NamedTuple):
    """How a W of several primitives acts on tokens, for `product`; sizes are (outputs, inputs).

    `apply` takes `(rows, *parameters, base, scale)` to (1, T, outputs), with rows (1, T, inputs), base like the result
    or None, and all tensors of one type but for what `wide` names.
    """

    apply: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    sizes: tuple[int, int]

    def product(self, x: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return self.apply(x, *self.parameters, base, scale)


def product(
    make: Callable[..., Primitive | Operator],
    x: Tensor,
    parameters: dict[str, Tensor],
    base: Tensor | None,
    scale: float,
    wide: Wide = "nothing",
) -> Tensor:
    """`base + scale * x @ W.T` for the W that `make` makes of the parameters.

    One function, since a call of another costs a hundredth of a small product.

    Args:
        make: `(*parameters)` -> W, of parameters in one type.
        x: tokens, (..., inputs).
        parameters: by their public names, checked already.
        base: added to the product, broadcastable to (..., outputs).
        scale: factor of the product.
        wide: what reaches the operator in float32 where the answer has 16 bits: everything where it would round more
            than once, the parameters alone where it takes tokens of 16 bits and rounds once.
    """
    _checks.require_strided("x", x)
    _checks.require_number("scale", scale)
    for name, parameter in parameters.items():
        _checks.require_same_device(x, name, parameter)
    if base is not None:
        _checks.require_strided("base", base)
        _checks.require_same_device(x, "base", base)
    result = _checks.common_dtype(x, *parameters.values(), base)
    tokens, inside = (result, result) if wide == "nothing" else _wide_types(x, parameters, result, wide)

    w = make(*[p if p.dtype is inside else p.to(inside) for p in parameters.values()])
    outputs, inputs = w.sizes
    _checks.require_features(x, inputs, parameters)
    leading = x.shape[:-1]
    rows = cast(x.reshape(1, -1, inputs), tokens)
    if base is not None:
        if base.dim() == 1 and base.shape[0] == outputs:  # one node in the graph, where the general way has two
            base = cast(base.expand(1, rows.shape[1], outputs), tokens)
        else:
            base = cast(_checks.broadcast_base(base, (*leading, outputs)).reshape(1, -1, outputs), tokens)
    y = cast(w.product(rows, base, float(scale)), result)
    return y.view(*leading, outputs) if torch.is_grad_enabled() else in_shape(y, *leading, outputs)


def by_rows(
    apply: Callable[[Tensor, Tensor | None, float], Tensor],
    x: Tensor,
    base: Tensor | None,
    scale: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What an operator gives for tokens (T, inputs) that have been checked, in a type; not recorded.

    The base is (outputs,) or like the result, which is a contiguous tensor of its own.
    """
    if base is not None:
        base = base.expand(1, x.shape[0], -1)
    y = apply(x.unsqueeze(0), base, scale)
    return resized(y if dtype is None else cast(y, dtype), x.shape[0], y.shape[-1])


def composed(
    apply: Callable[..., Tensor],
    x: Tensor,
    parameters: dict[str, Tensor],
    sizes: tuple[int, int],
    base: Tensor | None,
    scale: float,
    wide: Wide = "everything",
) -> Tensor:
    """`product` for an operator."""
    return product(lambda *values: Operator(apply, values, sizes), x, parameters, base, scale, wide)


def _wide_types(
    x: Tensor, parameters: dict[str, Tensor], result: torch.dtype, wide: Wide
) -> tuple[torch.dtype, torch.dtype]:
    """The types of tokens and of parameters."""
    inside = wide_type(result)
    alone = not x.requires_grad and any(parameter.requires_grad for parameter in parameters.values())
    return inside if wide == "everything" or (wide == "repeated" and alone) else result, inside


class Rows(NamedTuple):
    """The adapter of every row, (R,), and how many tokens a row has."""

    adapters: Tensor
    tokens: int

    def of(self, t: Tensor) -> Tensor:
        """(1, R tokens, n) as (R, tokens, n)."""
        return t.view(self.adapters.shape[0], self.tokens, t.shape[-1])


def chosen(x: Tensor, index: Tensor, adapters: int) -> Rows:
    """The adapter of every row of tokens of x; one that is not there is refused where numbers are at hand."""
    _checks.require_index(x, index)
    if index.is_cpu and _mode.has_values(index):
        _checks.require_within(index, adapters)
    return Rows(index.reshape(-1), math.prod(x.shape[index.dim() : -1]))


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in the dtype; a call of `to` costs a microsecond even where there is nothing to do."""
    return t if t.dtype is dtype else t.to(dtype)
