"""What all products share: checks of x, base and scale, promotion, autocast, and the way to operator form and back."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.ops import _mode

# What reaches an operator in float32 where the answer has 16 bits.
Wide = Literal["nothing", "parameters", "everything"]


def product(
    operator: Callable[..., Tensor],
    x: Tensor,
    parameters: dict[str, Tensor],
    features: int,
    outputs: int,
    base: Tensor | None,
    scale: float,
    wide: Wide = "nothing",
) -> Tensor:
    """`base + scale * x @ W.T` by an operator on tokens in rows.

    Args:
        operator: `(rows, *parameters, base, scale)` -> (1, T, outputs), with rows (1, T, features), base like the
            result or None, and all tensors of one type but for what `wide` names.
        x: tokens, (..., features).
        parameters: by their public names, checked already.
        features: what W takes.
        outputs: what W gives.
        base: added to the product, broadcastable to (..., outputs).
        scale: factor of the product.
        wide: what reaches the operator in float32 where the answer has 16 bits: everything where it would round more
            than once, the parameters alone where it takes tokens of 16 bits and rounds once.
    """
    _checks.require_floating("x", x)
    _checks.require_number("scale", scale)
    for name, parameter in parameters.items():
        _checks.require_same_device(x, name, parameter)
    _checks.require_features(x, features, parameters)
    leading = x.shape[:-1]
    if base is not None:
        _checks.require_floating("base", base)
        _checks.require_same_device(x, "base", base)
        base = _checks.broadcast_base(base, (*leading, outputs)).reshape(1, -1, outputs)

    result = _checks.common_dtype(x, *parameters.values(), base)
    parameter_type = result if wide == "nothing" else torch.promote_types(result, torch.float32)
    token_type = parameter_type if wide == "everything" else result
    rows = cast(x.reshape(1, -1, features), token_type)
    arguments = [cast(parameter, parameter_type) for parameter in parameters.values()]
    start = None if base is None else cast(base, token_type)
    return cast(operator(rows, *arguments, start, float(scale)), result).view(*leading, outputs)


def chosen(x: Tensor, index: Tensor, adapters: int) -> Tensor:
    """The adapter of every token of x in a row, (T,); one that is not there is refused where numbers are at hand."""
    _checks.require_index(x, index)
    if index.device.type == "cpu" and _mode.has_values(index):
        _checks.require_within(index, adapters)
    return index.reshape(-1)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in the dtype; a call of `to` costs a microsecond even where there is nothing to do."""
    return t if t.dtype is dtype else t.to(dtype)
