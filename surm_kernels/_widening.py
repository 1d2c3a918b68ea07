"""The type that 16-bit numbers are computed in: float32, so that a result is rounded once."""

import torch
from torch import Tensor


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit types, the type itself for float32 and float64."""
    return torch.promote_types(dtype, torch.float32)


def widened(t: Tensor) -> Tensor:
    """t in the type that it is computed in."""
    return t.to(wide_type(t.dtype))
