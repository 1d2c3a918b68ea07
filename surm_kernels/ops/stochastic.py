"""Stochastic rounding to 16 bits: the sum of two matrices, for merging what has no kernel of its own, and the keys.

Without derivatives: it is for parameters that do not change.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.reference.ops import stochastic as reference


def _stochastic_sum_fake(weight: Tensor, addend: Tensor, key: Tensor, out: Tensor) -> None:
    for matrix in (weight, addend):
        torch._check(matrix.shape == out.shape)


def _rounding_key_fake(first: Tensor, others: Sequence[Tensor], seed: int) -> Tensor:
    return first.new_empty((), dtype=torch.int64)


_stochastic_sum = define(
    "stochastic_sum(Tensor weight, Tensor addend, Tensor key, Tensor(a!) out) -> ()",
    _stochastic_sum_fake,
    reference.stochastic_sum,
    cuda=_problems.stochastic_sum,
)
#: The key of a seed, an int64, and of what the tensors hold: one number in int64 on their device, where nobody waits
#: for it. It is another one where a single number is.
rounding_key = define(
    "rounding_key(Tensor first, Tensor[] others, int seed) -> Tensor",
    _rounding_key_fake,
    reference.rounding_key,
    cuda=_problems.rounding_key,
)


def stochastic_sum(weight: Tensor, addend: Tensor, key: Tensor, out: Tensor) -> None:
    """`out = weight + addend`, taken in float32 and rounded stochastically by the key; weight may be out.

    out has 16 bits, addend is of its type or float32; all are matrices of one size, and the values of a row of out are
    contiguous.
    """
    if weight.dtype not in (out.dtype, torch.float32):  # as where autocast is to the other type of 16 bits
        weight = weight.float()
    _stochastic_sum(weight, addend, key, out)
    torch.autograd.graph.increment_version(out)  # which an operator's own write does not
