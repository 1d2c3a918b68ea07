"""An adapted layer as torch.compile sees it: a call whose inside it does not read, but differentiates."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils import _pytree

from surm_kernels.nn._adapted import Adapted, Update
from surm_kernels.nn._strategy import merges

_pytree.register_constant(Update)  # torch.compile takes it as it is


def traced(update: Update, x: Tensor, base: Sequence[Tensor], *parameters: Tensor) -> Tensor:
    """`Adapted` of tensors without values; a merged weight is formed in every call, forward and backward.

    The base is its weight and, where it has one, its bias: Dynamo does not take None here.
    """
    weight, bias = (*base, None)[:2]
    assert weight is not None
    need_parameters = any(parameter.requires_grad for parameter in parameters)
    merged = None
    if merges(update, x, weight, parameters, x.requires_grad, need_parameters, size=None, decisions=None):
        merged = update.merged(x, weight, parameters)
    output: Tensor = Adapted.apply(update, merged, x, weight, bias, *parameters)
    return output
