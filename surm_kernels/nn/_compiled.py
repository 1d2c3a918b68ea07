"""An adapted layer as torch.compile sees it: a call whose inside it does not read, but differentiates."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree

from surm_kernels._kept import rounding_of
from surm_kernels.nn._adapted import Adapted, Update
from surm_kernels.nn._strategy import merges, rounds_stochastically

_pytree.register_constant(Update)  # torch.compile takes it as it is


def traced(update: Update, training: bool, x: Tensor, base: Sequence[Tensor], *parameters: Tensor) -> Tensor:
    """`Adapted` of tensors without values; a merged weight is formed in every call, and again in its backward.

    It is rounded as in an ordinary call, but by the seed of when the call was compiled. The base is its weight and,
    where it has one, its bias: Dynamo does not take None here.
    """
    weight, bias = (*base, None)[:2]
    assert weight is not None
    changing = torch.is_grad_enabled() or training
    need_parameters = changing and any(parameter.requires_grad for parameter in parameters)
    merged = None
    if merges(update, x, weight, parameters, x.requires_grad, need_parameters, size=None, decisions=None):
        rounding = None
        if need_parameters and rounds_stochastically(update.merge_dtype or x.dtype, weight):
            rounding = rounding_of(update.structure, weight, parameters)
        merged = update.merged(x, weight, parameters, rounding)
    output: Tensor = Adapted.apply(update, merged, x, weight, bias, *parameters)
    return output
