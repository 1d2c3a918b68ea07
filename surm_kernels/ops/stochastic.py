"""The sum of two matrices rounded stochastically to 16 bits, for merging what has no kernel of its own.

Without derivatives: it is for parameters that do not change.
"""

import torch
from torch import Tensor

from surm_kernels.ops._library import define
from surm_kernels.reference.ops import stochastic as reference


def _stochastic_sum_fake(weight: Tensor, addend: Tensor, key: int, out: Tensor) -> None:
    for matrix in (weight, addend):
        torch._check(matrix.shape == out.shape)


_stochastic_sum = define(
    "stochastic_sum(Tensor weight, Tensor addend, int key, Tensor(a!) out) -> ()",
    _stochastic_sum_fake,
    reference.stochastic_sum,
)


def stochastic_sum(weight: Tensor, addend: Tensor, key: int, out: Tensor) -> None:
    """`out = weight + addend`, taken in float32 and rounded stochastically by the key; weight may be out.

    out has 16 bits, addend is of its type or float32; all are matrices of one size, and the values of a row of out are
    contiguous.
    """
    if weight.dtype not in (out.dtype, torch.float32):  # as where autocast is to the other type of 16 bits
        weight = weight.float()
    _stochastic_sum(weight, addend, key, out)
    torch.autograd.graph.increment_version(out)  # which an operator's own write does not
