"""Products with an adapter of its own for every token, for inference: `circulant_bank` and `diagonal_bank`.

A circulant product of one token has nothing to share with others: a program takes a block of outputs of one token,
walks along its inputs and multiplies them by the entries of W, gathered from the token's row of the bank. n^2 a token,
which is for few tokens, as in decoding. The diagonal product is that of diagonal.py with the values gathered by token.
Signatures and values are those of docs/architecture.md, for 16-bit types and float32. An index out of range gives NaN.
"""

import triton
import triton.language as tl
from torch import Tensor

from surm_kernels.block_kinds import SKEW_CIRCULANT
from surm_kernels.triton import _tuning
from surm_kernels.triton.diagonal import product


def _config(outputs: int, inputs: int, warps: int) -> triton.Config:
    return triton.Config({"BLOCK_OUTPUTS": outputs, "BLOCK_INPUTS": inputs}, num_warps=warps, num_stages=1)


CONFIGS = [_config(32, 64, 4), _config(64, 64, 4), _config(32, 128, 4), _config(128, 64, 8), _config(16, 256, 4)]


@_tuning.tuned(CONFIGS, key=["shape_class"], prune=lambda configs, _, **__: configs)
@triton.jit(do_not_specialize=["shape_class"])
def circulant_kernel(
    x,
    c,
    index,
    base,
    y,
    scale,
    size,
    adapters,
    x_token,
    base_token,
    shape_class,
    SKEW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """A block of outputs of one token; c (adapters, size) and y (T, size) are contiguous."""
    blocks = tl.cdiv(size, BLOCK_OUTPUTS)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    output = tl.program_id(0) % blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_output = output < size
    adapter = tl.load(index + token).to(tl.int64)
    is_adapter = (adapter >= 0) & (adapter < adapters)
    c += tl.where(is_adapter, adapter, 0) * size
    total = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
    for first in range(0, size, BLOCK_INPUTS):
        input = first + tl.arange(0, BLOCK_INPUTS)
        values = tl.load(x + token * x_token + input, mask=input < size, other=0.0).to(tl.float32)
        difference = output[:, None] - input[None, :]
        if TRANSPOSED:
            difference = -difference
        is_entry = is_output[:, None] & (input < size)[None, :]
        place = tl.where(difference < 0, difference + size, difference)
        entries = tl.load(c + place, mask=is_entry, other=0.0).to(tl.float32)
        if SKEW:
            entries = tl.where(difference < 0, -entries, entries)
        total += entries * values[None, :]
    result = scale * tl.sum(total, 1)
    if base is not None:
        result += tl.load(base + token * base_token + output, mask=is_output, other=0.0).to(tl.float32)
    result = tl.where(is_adapter, result, float("nan"))
    tl.store(y + token * size + output, result.to(y.dtype.element_ty), mask=is_output)


def circulant_bank(
    x: Tensor, c: Tensor, index: Tensor, base: Tensor | None, kind: int, scale: float, transposed: bool
) -> Tensor:
    """`base[t] + scale * W(c[index[t]]) x[t]` for a circulant or skew-circulant W; W's transpose when transposed."""
    _tuning.require_float32_or_less("x", x)
    tokens, size = x.shape
    y = x.new_empty(tokens, size)
    if y.numel() == 0:
        return y
    x = _tuning.with_contiguous_rows(x)
    base = None if base is None else _tuning.with_contiguous_rows(base)
    with _tuning.device_of(x):
        circulant_kernel[lambda meta: (tokens * triton.cdiv(size, meta["BLOCK_OUTPUTS"]),)](
            x,
            c.contiguous(),
            index.contiguous(),
            base,
            y,
            scale,
            size,
            c.shape[0],
            x.stride(0),
            0 if base is None else base.stride(0),
            _tuning.shape_class(tokens, size),
            SKEW=kind == SKEW_CIRCULANT,
            TRANSPOSED=transposed,
            enable_fp_fusion=True,
        )
    return y


def diagonal_bank(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, index: Tensor, base: Tensor | None, scale: float
) -> Tensor:
    """`base + scale * ((x @ v) * s[index]) @ u.T`."""
    start = None if base is None else base.unsqueeze(0)
    between = product(x.unsqueeze(0), v.unsqueeze(0), s.contiguous(), index.contiguous())
    return product(between, u.mT.unsqueeze(0), None, None, start, scale).squeeze(0)
