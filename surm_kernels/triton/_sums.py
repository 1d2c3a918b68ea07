"""The second stage of a reduction over tokens: partial sums added in an order that depends on their number alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm_kernels.triton import _tuning

PARTS_AT_ONCE = 32
VALUES_AT_ONCE = 64


@triton.jit
def sum_kernel(parts, result, scale, count, values, PARTS: tl.constexpr, VALUES: tl.constexpr):
    """`result[group] = scale * parts[group].sum(0)` for `count` parts of some contiguous values."""
    tiles = tl.cdiv(values, VALUES)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    value = tl.program_id(0) % tiles * VALUES + tl.arange(0, VALUES)
    is_value = value < values
    parts += group * count * values
    total = tl.zeros((VALUES,), tl.float32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        place = part.to(tl.int64)[:, None] * values + value[None, :]
        tile = tl.load(parts + place, mask=(part < count)[:, None] & is_value[None, :], other=0.0)
        total += tl.sum(tile, 0)
    tl.store(result + group * values + value, (scale * total).to(result.dtype.element_ty), mask=is_value)


def summed(parts: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """`scale * parts.sum(1)` in the type, (G, ...), for contiguous parts (G, count, ...) in float32."""
    groups, count = parts.shape[:2]
    result = parts.new_empty((groups, *parts.shape[2:]), dtype=dtype)
    values = result[:1].numel()
    if result.numel() != 0:
        with _tuning.device_of(parts):
            sum_kernel[(groups * triton.cdiv(values, VALUES_AT_ONCE),)](
                parts,
                result,
                scale,
                count,
                values,
                PARTS=PARTS_AT_ONCE,
                VALUES=VALUES_AT_ONCE,
                enable_fp_fusion=True,
            )
    return result
