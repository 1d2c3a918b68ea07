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
    # To resize it takes no longer than a view does, but is for ordinary calls alone.
    if type(t) is Tensor and not (_mode.is_transformed() or t._is_view()) and t.is_contiguous():
        return t.resize_(shape)
    return torch.ops.aten._unsafe_view.default(t, shape)


def resized(t: Tensor, *shape: int) -> Tensor:
    """`in_shape` of what an operator has just made in an ordinary or compiled call that records nothing."""
    if type(t) is Tensor and not t._is_view() and t.is_contiguous():
        return t.resize_(shape)
    return torch.ops.aten._unsafe_view.default(t.contiguous(), shape)
