"""The diagonal operators: `base + scale * ((x @ v) * s) @ u.T` and its pullbacks, for SiVA.

Two matrix products with the scaling in the epilogue of the first, so 16-bit types round between them. The pullback is
a dual product: a program computes a tile of g u and the same tile of x v, multiplies them and sums over its tokens, so
neither is ever in memory, but for the (g u) * s that the gradient of x takes. Signatures and values are those of
docs/architecture.md, for 16-bit types and float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm_kernels.triton import _tuning
from surm_kernels.triton._grid import tile_of_program
from surm_kernels.triton._sums import summed

LONGEST_SUM = 1024  # terms in one float32 accumulator of float32 products: longer sums would lose digits
TOKENS_TO_PAD_FOR = 128


def _product_config(tokens: int, outputs: int, inputs: int, warps: int, stages: int) -> triton.Config:
    tile = {"BLOCK_TOKENS": tokens, "BLOCK_OUTPUTS": outputs, "BLOCK_INPUTS": inputs}
    return triton.Config(tile, num_warps=warps, num_stages=stages)


def _dual_config(rank: int, inputs: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_RANK": rank, "BLOCK_INPUTS": inputs}, num_warps=warps, num_stages=stages)


PRODUCT_CONFIGS = [
    _product_config(64, 64, 32, 4, 3),  # serves every device and shape
    _product_config(16, 64, 128, 4, 4),  # few tokens, as in decoding
    _product_config(32, 128, 64, 4, 4),
    _product_config(64, 128, 32, 4, 4),  # Ampere
    _product_config(128, 128, 32, 8, 4),
    _product_config(64, 128, 64, 4, 4),
    _product_config(128, 128, 64, 8, 3),  # Hopper and Blackwell
    _product_config(128, 128, 64, 8, 4),
    _product_config(128, 256, 64, 8, 3),
    _product_config(128, 256, 64, 8, 4),
    _product_config(64, 64, 16, 8, 3),  # float32
    _product_config(16, 64, 16, 4, 3),
    _product_config(32, 64, 16, 4, 3),
]
DUAL_CONFIGS = [
    _dual_config(64, 32, 4, 3),  # serves every device and shape
    _dual_config(128, 32, 8, 4),  # Ampere
    _dual_config(128, 64, 8, 3),  # Hopper and Blackwell
    _dual_config(128, 64, 8, 4),
    _dual_config(64, 16, 8, 3),  # float32
]


def for_float32(config: triton.Config) -> bool:
    """Whether a config is for float32, which the vector units multiply, with all its operands in registers."""
    return config.kwargs["BLOCK_INPUTS"] == 16


def is_large(config: triton.Config) -> bool:
    """Whether a tile fills the registers: not for Ampere, nor beside the values that a bank holds for each token."""
    return config.kwargs.get("BLOCK_OUTPUTS", 0) == 256


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    """The configs for the type and the device of x whose tile is not mostly empty."""
    x, tokens = arguments["x"], max(arguments["tokens"], 16)
    large = arguments.get("adapter") is None and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return [
        config
        for config in configs
        if for_float32(config) == (x.dtype == torch.float32)
        and (large or not is_large(config))
        and config.kwargs.get("BLOCK_TOKENS", tokens) < 2 * tokens
    ]


@triton.jit
def products(
    x,
    matrix,
    token,
    column,
    tokens,
    inputs,
    columns,
    x_token,
    matrix_input,
    matrix_column,
    LONGEST_SUM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """The float32 tile (x @ matrix)[token, column] of one group; x_token and its like are strides."""
    is_token, is_column = (token < tokens)[:, None], (column < columns)[None, :]
    x += token.to(tl.int64)[:, None] * x_token
    matrix += column.to(tl.int64)[None, :] * matrix_column
    result = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), tl.float32)
    if x.dtype.element_ty == tl.float32:
        for start in range(0, inputs, LONGEST_SUM):
            part = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), tl.float32)
            for first in range(start, tl.minimum(start + LONGEST_SUM, inputs), BLOCK_INPUTS):
                input = first + tl.arange(0, BLOCK_INPUTS)
                values = tl.load(x + input[None, :], mask=is_token & (input < inputs)[None, :], other=0.0)
                place = matrix + input.to(tl.int64)[:, None] * matrix_input
                entries = tl.load(place, mask=(input < inputs)[:, None] & is_column, other=0.0)
                part = tl.dot(values, entries, part, input_precision="ieee")
            result += part
    else:
        for first in range(0, inputs, BLOCK_INPUTS):
            input = first + tl.arange(0, BLOCK_INPUTS)
            values = tl.load(x + input[None, :], mask=is_token & (input < inputs)[None, :], other=0.0)
            place = matrix + input.to(tl.int64)[:, None] * matrix_input
            entries = tl.load(place, mask=(input < inputs)[:, None] & is_column, other=0.0)
            result = tl.dot(values, entries, result)
    return result


@_tuning.tuned(PRODUCT_CONFIGS, key=["shape_class"], prune=_fitting)
@triton.jit(do_not_specialize=["shape_class"])
def product_kernel(
    x,
    matrix,
    factors,
    adapter,
    base,
    y,
    scale,
    tokens,
    inputs,
    outputs,
    adapters,
    x_group,
    x_token,
    matrix_group,
    matrix_input,
    matrix_output,
    base_group,
    base_token,
    shape_class,
    LONGEST_SUM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """One tile of `base + scale * (x @ matrix) * factors` of one group.

    A group has one row of factors, or, where there is an `adapter` for every token, each token has that row of them.
    """
    group, token_tile, output_tile = tile_of_program(tl.cdiv(tokens, BLOCK_TOKENS), tl.cdiv(outputs, BLOCK_OUTPUTS))
    token = token_tile * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    output = output_tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    x += group * x_group
    matrix += group * matrix_group
    result = products(
        x,
        matrix,
        token,
        output,
        tokens,
        inputs,
        outputs,
        x_token,
        matrix_input,
        matrix_output,
        LONGEST_SUM,
        BLOCK_TOKENS,
        BLOCK_OUTPUTS,
        BLOCK_INPUTS,
    )
    is_output = (output < outputs)[None, :]
    is_result = (token < tokens)[:, None] & is_output
    if adapter is not None:
        row = tl.load(adapter + token, mask=token < tokens, other=0).to(tl.int64)
        is_row = ((row >= 0) & (row < adapters))[:, None]
        own = tl.load(factors + row[:, None] * outputs + output[None, :], mask=is_row & is_output, other=0.0)
        result *= tl.where(is_row, own.to(tl.float32), float("nan"))
    elif factors is not None:
        result *= tl.load(factors + group * outputs + output[None, :], mask=is_output, other=0.0).to(tl.float32)
    result *= scale
    if base is not None:
        start = base + group * base_group + token.to(tl.int64)[:, None] * base_token + output[None, :]
        result += tl.load(start, mask=is_result, other=0.0).to(tl.float32)
    place = y + (group * tokens + token)[:, None] * outputs + output[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=is_result)


@_tuning.tuned(DUAL_CONFIGS, key=["shape_class"], prune=_fitting)
@triton.jit(do_not_specialize=["shape_class"])
def dual_kernel(
    g,
    x,
    u,
    v,
    s,
    scaled,
    sums,
    tokens,
    outputs,
    inputs,
    rank,
    g_group,
    g_token,
    x_group,
    x_token,
    u_group,
    u_row,
    u_column,
    v_group,
    v_row,
    v_column,
    shape_class,
    LONGEST_SUM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """The sums of (g u) * (x v) over a block of tokens, and `scaled = (g u) * s` where that is wanted.

    g u is rounded to the type of g, to leave the registers to the second product.
    """
    token_tiles = tl.cdiv(tokens, BLOCK_TOKENS)
    group, token_tile, rank_tile = tile_of_program(token_tiles, tl.cdiv(rank, BLOCK_RANK))
    token = token_tile * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    column = rank_tile * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    is_column = column < rank
    g += group * g_group
    x += group * x_group
    u += group * u_group
    v += group * v_group

    g_u = products(
        g,
        u,
        token,
        column,
        tokens,
        outputs,
        rank,
        g_token,
        u_row,
        u_column,
        LONGEST_SUM,
        BLOCK_TOKENS,
        BLOCK_RANK,
        BLOCK_INPUTS,
    )
    if scaled is not None:
        factors = tl.load(s + group * rank + column, mask=is_column, other=0.0).to(tl.float32)
        place = scaled + (group * tokens + token)[:, None] * rank + column[None, :]
        rounded = (g_u * factors[None, :]).to(scaled.dtype.element_ty)
        tl.store(place, rounded, mask=(token < tokens)[:, None] & is_column[None, :])
    g_u = g_u.to(g.dtype.element_ty)
    x_v = products(
        x,
        v,
        token,
        column,
        tokens,
        inputs,
        rank,
        x_token,
        v_row,
        v_column,
        LONGEST_SUM,
        BLOCK_TOKENS,
        BLOCK_RANK,
        BLOCK_INPUTS,
    )
    total = tl.sum(g_u.to(tl.float32) * x_v, 0)
    tl.store(sums + (group * token_tiles + token_tile) * rank + column, total, mask=is_column)


def diagonal(x: Tensor, u: Tensor, s: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
    """`base + scale * ((x @ v) * s) @ u.T`."""
    u, s, v = (_padded(x, t) for t in (u, s, v))
    return product(product(x, v, s.contiguous()), u.mT, None, None, base, scale)


def diagonal_pullback(g: Tensor, x: Tensor, u: Tensor, v: Tensor, scale: float) -> Tensor:
    """`scale` times the sum over tokens of `(g @ u) * (x @ v)`."""
    rank = u.shape[2]
    return _dual(g, x, _padded(x, u), _padded(x, v), None, None, scale)[:, :rank].contiguous()


def diagonal_backward(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The gradients of `scale * <g, x @ W.T>` with respect to x and s, sharing g u."""
    rank = s.shape[1]
    u, s, v = (_padded(x, t) for t in (u, s, v))
    scaled = x.new_empty(*g.shape[:2], u.shape[2])
    s_gradient = _dual(g, x, u, v, s.contiguous(), scaled, scale)
    return product(scaled, v.mT, None, None, None, scale), s_gradient[:, :rank].contiguous()


def _padded(x: Tensor, t: Tensor) -> Tensor:
    """t (..., k) with zeros up to a multiple of 16, for as many tokens x (G, T, n) as make up for the copy.

    The number of directions is any, and values are loaded together only from rows that start at multiples of 16 bytes.
    """
    missing = -t.shape[-1] % 16
    return torch.nn.functional.pad(t, (0, missing)) if missing and x.shape[1] >= TOKENS_TO_PAD_FOR else t


def product(
    x: Tensor,
    matrix: Tensor,
    factors: Tensor | None = None,
    adapter: Tensor | None = None,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`base + scale * (x @ matrix) * factors` for x (G, T, inputs) and a matrix (G, inputs, outputs) in any layout.

    factors (G, outputs) are those of a group or, with an adapter (T,) for the tokens of a single group, rows
    (adapters, outputs); an adapter out of range gives a row of NaN. base is (G, T, outputs).
    """
    _tuning.require_float32_or_less("x", x)
    groups, tokens, inputs = x.shape
    outputs = matrix.shape[2]
    y = x.new_empty(groups, tokens, outputs)
    if y.numel() == 0:
        return y
    x = _tuning.with_contiguous_rows(x)
    base = None if base is None else _tuning.with_contiguous_rows(base)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        tiles = triton.cdiv(tokens, meta["BLOCK_TOKENS"]) * triton.cdiv(outputs, meta["BLOCK_OUTPUTS"])
        return (groups * tiles,)

    with _tuning.device_of(x):
        product_kernel[grid](
            x,
            matrix,
            factors,
            adapter,
            base,
            y,
            scale,
            tokens,
            inputs,
            outputs,
            0 if factors is None else factors.shape[0],
            x.stride(0),
            x.stride(1),
            *matrix.stride(),
            0 if base is None else base.stride(0),
            0 if base is None else base.stride(1),
            _tuning.shape_class(tokens, inputs, outputs),
            LONGEST_SUM=LONGEST_SUM,
            enable_fp_fusion=True,
        )
    return y


def _dual(g: Tensor, x: Tensor, u: Tensor, v: Tensor, s: Tensor | None, scaled: Tensor | None, scale: float) -> Tensor:
    """`diagonal_pullback`; it writes (g u) * s to `scaled` (G, T, k) where there is one."""
    _tuning.require_float32_or_less("x", x)
    groups, tokens, inputs = x.shape
    outputs, rank = u.shape[1:]
    g, x = _tuning.with_contiguous_rows(g), _tuning.with_contiguous_rows(x)
    # The same for every config, so that the order of the sum depends on shapes alone.
    block = 64 if x.dtype == torch.float32 else 128
    sums = x.new_empty(groups, triton.cdiv(tokens, block), rank, dtype=torch.float32)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (groups * sums.shape[1] * triton.cdiv(rank, meta["BLOCK_RANK"]),)

    if sums.numel() != 0:
        with _tuning.device_of(x):
            dual_kernel[grid](
                g,
                x,
                u,
                v,
                s,
                scaled,
                sums,
                tokens,
                outputs,
                inputs,
                rank,
                g.stride(0),
                g.stride(1),
                x.stride(0),
                x.stride(1),
                *u.stride(),
                *v.stride(),
                _tuning.shape_class(tokens, outputs, inputs, rank),
                LONGEST_SUM=LONGEST_SUM,
                BLOCK_TOKENS=block,
                enable_fp_fusion=True,
            )
    return summed(sums, scale, x.dtype)
