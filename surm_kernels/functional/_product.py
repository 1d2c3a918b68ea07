"""What all products share: checks of x, base and scale, promotion, autocast, and the way to operator form and back."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import wide_type
from surm_kernels.ops import _mode
from surm_kernels.ops._outputs import in_shape
from surm_kernels.ops._primitive import Primitive

#: What reaches an operator in float32 where the answer has 16 bits. "repeated" parameters fill several places of an
#: argument: they are widened, so that their gradient is rounded once, and everything is where theirs is the only
#: gradient, since a pullback knows the type of x alone.
Wide = Literal["nothing", "parameters", "repeated", "everything"]


def product(
    make: Callable[..., Primitive],
    x: Tensor,
    parameters: dict[str, Tensor],
    base: Tensor | None,
    scale: float,
    wide: Wide = "nothing",
) -> Tensor:
    """`base + scale * x @ W.T` for the primitive W that `make` makes of the parameters.

    Args:
        make: `(*parameters)` -> W, of parameters in one type.
        x: tokens, (..., inputs).
        parameters: by their public names, checked already.
        base: added to the product, broadcastable to (..., outputs).
        scale: factor of the product.
        wide: what reaches the operator in float32 where the answer has 16 bits: everything where it would round more
            than once, the parameters alone where it takes tokens of 16 bits and rounds once.
    """
    result, token_type, parameter_type = _types(x, parameters, base, scale, wide)
    w = make(*[cast(parameter, parameter_type) for parameter in parameters.values()])
    outputs, inputs = w.sizes
    rows, start = _rows(x, parameters, base, outputs, inputs, token_type)
    return in_shape(cast(w.product(rows, start, float(scale)), result), *x.shape[:-1], outputs)


def composed(
    operator: Callable[..., Tensor],
    x: Tensor,
    parameters: dict[str, Tensor],
    sizes: tuple[int, int],
    base: Tensor | None,
    scale: float,
    wide: Wide = "everything",
) -> Tensor:
    """`product` for a W of several primitives, (outputs, inputs) = `sizes`, by an operator on tokens in rows.

    `operator` takes `(rows, *parameters, base, scale)` to (1, T, outputs), with rows (1, T, inputs), base like the
    result or None, and all tensors of one type but for what `wide` names.
    """
    result, token_type, parameter_type = _types(x, parameters, base, scale, wide)
    outputs, inputs = sizes
    rows, start = _rows(x, parameters, base, outputs, inputs, token_type)
    arguments = [cast(parameter, parameter_type) for parameter in parameters.values()]
    return in_shape(cast(operator(rows, *arguments, start, float(scale)), result), *x.shape[:-1], outputs)


def _types(
    x: Tensor, parameters: dict[str, Tensor], base: Tensor | None, scale: float, wide: Wide
) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """The types of the result, of tokens and of parameters, after checks of all that has not been checked."""
    _checks.require_strided("x", x)
    _checks.require_number("scale", scale)
    for name, parameter in parameters.items():
        _checks.require_same_device(x, name, parameter)
    if base is not None:
        _checks.require_strided("base", base)
        _checks.require_same_device(x, "base", base)
    result = _checks.common_dtype(x, *parameters.values(), base)
    if wide == "nothing":
        return result, result, result
    inside = wide_type(result)
    if wide == "repeated":
        alone = not x.requires_grad and any(parameter.requires_grad for parameter in parameters.values())
        wide = "everything" if alone else "parameters"
    return result, inside if wide == "everything" else result, inside


def _rows(
    x: Tensor, parameters: dict[str, Tensor], base: Tensor | None, outputs: int, inputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Tokens (1, T, inputs) and base (1, T, outputs) in a type, checked."""
    _checks.require_features(x, inputs, parameters)
    rows = cast(x.reshape(1, -1, inputs), dtype)
    if base is None:
        return rows, None
    start = _checks.broadcast_base(base, (*x.shape[:-1], outputs)).reshape(1, -1, outputs)
    return rows, cast(start, dtype)


def chosen(x: Tensor, index: Tensor, adapters: int) -> Tensor:
    """The adapter of every token of x in a row, (T,); one that is not there is refused where numbers are at hand."""
    _checks.require_index(x, index)
    if index.is_cpu and _mode.has_values(index):
        _checks.require_within(index, adapters)
    return index.reshape(-1)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in the dtype; a call of `to` costs a microsecond even where there is nothing to do."""
    return t if t.dtype is dtype else t.to(dtype)
