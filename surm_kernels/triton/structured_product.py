"""The structured GEMM: `base + scale * x @ W.T`, or `x @ W`, with tiles of W generated where they are multiplied.

W never exists in memory. A program computes a tile of the result: it walks along the inputs, loads a tile of tokens,
generates the tile of W that meets it and multiplies both. It computes in the type of theta and accumulates in float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm_kernels.triton import _tuning
from surm_kernels.triton._grid import tile_of_program
from surm_kernels.triton.tiles import Matrix, entries


def _config(tokens: int, outputs: int, inputs: int, warps: int, stages: int) -> triton.Config:
    tile = {"BLOCK_TOKENS": tokens, "BLOCK_OUTPUTS": outputs, "BLOCK_INPUTS": inputs}
    return triton.Config(tile, num_warps=warps, num_stages=stages)


NARROW_CONFIGS = [
    _config(64, 64, 32, 4, 3),  # serves every device and shape
    _config(16, 64, 64, 4, 3),  # few tokens, as in decoding
    _config(32, 128, 32, 4, 3),
    _config(64, 128, 32, 8, 3),  # Ampere
    _config(128, 64, 32, 4, 4),
    _config(128, 128, 32, 8, 3),
    _config(64, 128, 64, 8, 3),  # Hopper and Blackwell
    _config(128, 128, 64, 8, 3),
    _config(256, 64, 32, 8, 3),
]
# float32 is multiplied by the vector units, with all operands of a tile in registers.
WIDE_CONFIGS = [
    _config(32, 64, 16, 8, 2),  # serves every device and shape
    _config(32, 32, 16, 4, 2),
    _config(64, 32, 16, 4, 2),
    _config(64, 64, 16, 16, 2),
]


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    """The configs whose tile is not mostly empty."""
    heights = [config.kwargs["BLOCK_TOKENS"] for config in configs]
    tokens = max(arguments["tokens"], min(heights))
    return [config for config, height in zip(configs, heights, strict=True) if height < 2 * tokens]


@triton.jit(do_not_specialize=["shape_class"])
def product_kernel(
    x,
    theta,
    base,
    y,
    scale,
    tokens,
    inputs,
    outputs,
    x_group,
    x_token,
    base_group,
    base_token,
    theta_size,
    rows,
    columns,
    in_blocks,
    shape_class,
    KIND: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """One tile of one group's result; x_group and its like are strides, theta_size is that of one group's theta."""
    group, token_tile, output_tile = tile_of_program(tl.cdiv(tokens, BLOCK_TOKENS), tl.cdiv(outputs, BLOCK_OUTPUTS))
    token = token_tile * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    output = output_tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_token, is_output = (token < tokens)[:, None], (output < outputs)[None, :]
    # Outside the matrix its last row and column stand in: what they give meets zeros or is not stored.
    own_output = tl.minimum(output, outputs - 1)
    x += group * x_group + token.to(tl.int64)[:, None] * x_token
    theta += group * theta_size

    result = tl.zeros((BLOCK_TOKENS, BLOCK_OUTPUTS), tl.float32)
    for first in range(0, inputs, BLOCK_INPUTS):
        input = first + tl.arange(0, BLOCK_INPUTS)
        values = tl.load(x + input[None, :], mask=is_token & (input < inputs)[None, :], other=0.0)
        own_input = tl.minimum(input, inputs - 1)
        if TRANSPOSED:
            w = entries(theta, own_input[:, None], own_output[None, :], rows, columns, in_blocks, KIND)
        else:
            w = entries(theta, own_output[None, :], own_input[:, None], rows, columns, in_blocks, KIND)
        if w.dtype == tl.float32:
            # The sum of a tile apart: one chain of additions along all inputs would lose digits.
            result += scale * tl.dot(values.to(tl.float32), w, input_precision="ieee")
        else:
            result = tl.dot(values, w, result)

    if theta.dtype.element_ty != tl.float32:
        result *= scale
    is_result = is_token & is_output
    if base is not None:
        start = base + group * base_group + token.to(tl.int64)[:, None] * base_token + output[None, :]
        result += tl.load(start, mask=is_result, other=0.0).to(tl.float32)
    place = y + (group * tokens + token)[:, None] * outputs + output[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=is_result)


_key = ["shape_class", "KIND", "TRANSPOSED"]
narrow_product_kernel = _tuning.tuned(NARROW_CONFIGS, _key, _fitting)(product_kernel)
wide_product_kernel = _tuning.tuned(WIDE_CONFIGS, _key, _fitting)(product_kernel)


def product(x: Tensor, matrix: Matrix, base: Tensor | None, scale: float, transposed: bool) -> Tensor:
    """`base + scale * x @ W.T`, `base + scale * x @ W` when transposed, in the type of x; x is (G, T, inputs)."""
    groups, tokens, inputs = x.shape
    outputs = matrix.inputs if transposed else matrix.outputs
    y = x.new_empty(groups, tokens, outputs)
    if y.numel() == 0:
        return y
    x = _tuning.with_contiguous_rows(x)
    base = None if base is None else _tuning.with_contiguous_rows(base)
    wide = matrix.theta.dtype == torch.float32
    kernel = wide_product_kernel if wide else narrow_product_kernel

    def grid(meta: dict[str, Any]) -> tuple[int]:
        tiles = triton.cdiv(tokens, meta["BLOCK_TOKENS"]) * triton.cdiv(outputs, meta["BLOCK_OUTPUTS"])
        return (groups * tiles,)

    with _tuning.device_of(x):
        kernel[grid](
            x,
            matrix.theta,
            base,
            y,
            scale,
            tokens,
            inputs,
            outputs,
            x.stride(0),
            x.stride(1),
            0 if base is None else base.stride(0),
            0 if base is None else base.stride(1),
            matrix.theta_size,
            matrix.rows,
            matrix.columns,
            matrix.in_blocks,
            _tuning.shape_class(tokens, inputs, outputs),
            KIND=matrix.kind,
            TRANSPOSED=transposed,
            enable_fp_fusion=True,
        )
    return y
