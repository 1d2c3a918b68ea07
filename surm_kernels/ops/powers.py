"""Rows of a Vandermonde matrix, generated in one pass; what is built of them is differentiated in closed form.

`powers(v, columns)` is v[i]^j for v (m,) in float32 or float64, rounded once; subnormal powers are zero, since a matrix
product can take forty times as long over them.
"""

from torch import Tensor

from surm_kernels.ops._library import define
from surm_kernels.reference.ops import powers as reference


def _powers_fake(v: Tensor, columns: int) -> Tensor:
    return v.new_empty(v.shape[0], columns)


powers = define("powers(Tensor v, SymInt columns) -> Tensor", _powers_fake, reference.powers)
