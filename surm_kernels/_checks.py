"""Argument checks of the public functions: each error names the argument, what came and what is wanted.

They run on every call, of one token as well, so they read a few attributes and build a message only to raise it.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_floating(name: str, value: Any) -> None:
    """A tensor of one of the four floating types."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {_name(value.dtype)}")


def require_number(name: str, value: Any) -> None:
    """A real Python number."""
    if not isinstance(value, (float, int, numbers.Real)):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")


def require_finite(name: str, value: Any) -> None:
    """A real Python number that is neither infinite nor NaN."""
    require_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def require_size(name: str, value: Any) -> None:
    """A positive int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_dimensions(name: str, value: Tensor, allowed: tuple[int, ...], wanted: str) -> None:
    """One of the allowed numbers of dimensions, none of them empty; `wanted` says it, as in "(n,) or (M, K, b)"."""
    if value.dim() not in allowed or value.numel() == 0:
        raise ValueError(f"{name} must have shape {wanted} with no empty dimension, got {_shape(value)}")


def require_features(x: Tensor, features: int, name: str, parameter: Tensor) -> None:
    """Tokens x of shape (..., features), as the parameter demands."""
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(
            f"x must have shape (..., {features}) to go with {name} of shape {_shape(parameter)}, got {_shape(x)}"
        )


def require_same_device(x: Tensor, name: str, value: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")


def broadcast_base(base: Tensor, shape: tuple[int, ...]) -> Tensor:
    """base in the shape of the output, expanded where it is broadcastable to it."""
    # Sizes are compared after the number of dimensions: torch.compile guards on every comparison it sees.
    if base.dim() == len(shape) and base.shape == shape:
        return base
    aligned = zip(reversed(base.shape), reversed(shape), strict=False)
    if base.dim() > len(shape) or any(size not in (1, wanted) for size, wanted in aligned):
        raise ValueError(f"base must be broadcastable to the output's shape {tuple(shape)}, got {_shape(base)}")
    return base.expand(shape)


def common_dtype(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """The type to compute in: promotion over all tensors, or autocast's, which leaves float64 alone as torch does."""
    dtype = x.dtype
    for other in others:
        if other is not None and other.dtype is not dtype:
            dtype = torch.promote_types(dtype, other.dtype)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
