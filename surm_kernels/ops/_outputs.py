"""Outputs in the shape that was asked for, which whoever gets them may change in place."""

import torch
from torch import Tensor

from surm_kernels.ops import _mode


def in_shape(t: Tensor, *shape: int) -> Tensor:
    """A contiguous tensor that nobody else has, in another shape.

    Where nothing is recorded it is no view: torch refuses to change one that was made there in place.
    """
    if torch.is_grad_enabled():
        return t.view(shape)
    if t.is_contiguous() and not t._is_view() and _mode.is_ordinary(t):
        return t.resize_(shape)  # faster than to make another tensor
    return torch.ops.aten._unsafe_view.default(t, shape)
