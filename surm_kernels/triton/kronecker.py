"""The Kronecker operators: `base + scale * x @ kron(a, b).T` and its pullbacks, both products fused.

A token is a q x s matrix X, row by row, and (a ⊗ b) x is Y = a X b^T. A program takes a block of tokens, multiplies X
by b, keeps the q x r matrices in float32 and multiplies them by a, or, for the gradient of a, by G. With other strides
the same tokens are X^T, and the factors change places: so each kernel serves both orders, of which the cheaper is
taken, and both factors. Sizes are padded to powers of two, P to S, in registers.

In 16-bit types the first products are exact. What they give is multiplied as the sum of two numbers of 11 bits, in
tf32, so a result is rounded once. float32 is multiplied as it is. Signatures and values are those of
docs/architecture.md, for 16-bit types and float32 and the factors that `serves` takes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm_kernels.triton import _tuning
from surm_kernels.triton._sums import summed

# Size of a factor: what lies between has to fit the registers, and with it, in float32, all operands.
LARGEST = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}
TOKENS_OF_A_SUM = 32  # that a program of the pullback adds up


def serves(a: Tensor, b: Tensor) -> bool:
    """Whether the kernels take factors a (G, p, q) and b (G, r, s)."""
    return max(*a.shape[1:], *b.shape[1:]) <= LARGEST.get(a.dtype, 0)


def _require_served(x: Tensor, *sizes: int) -> None:
    _tuning.require_float32_or_less("x", x)
    largest = LARGEST[x.dtype]
    if max(sizes) > largest:
        p, q, r, s = sizes
        raise ValueError(
            f"a and b must have no size above {largest} for a Triton kernel of {x.dtype}, got {(p, q)} and {(r, s)}"
        )


def _padded(size: int) -> int:
    """The power of two that holds a size, 16 at least: the matrix units want it."""
    return max(16, 1 << (size - 1).bit_length())


def _padded_sizes(*sizes: int) -> dict[str, int]:
    return {name: _padded(size) for name, size in zip("PQRS", sizes, strict=True)}


def _config(tokens: int, warps: int) -> triton.Config:
    return triton.Config({"TOKENS": tokens}, num_warps=warps, num_stages=1)


CONFIGS = [_config(tokens, warps) for tokens in (16, 8, 4, 2, 1) for warps in (8, 4)]


def fitting(configs: list[triton.Config], _: Any, **sizes: Any) -> list[triton.Config]:
    """The configs whose block of tokens is worth a program and fits the registers; sizes are those of `padded`."""
    token = max(sizes[left] * sizes[right] for left in "PQ" for right in "RS")
    wanted = [config for config in configs if 2048 <= config.kwargs["TOKENS"] * token <= 4096]
    return wanted or [config for config in configs if config.kwargs["TOKENS"] == 1]


@triton.jit
def _places(
    first, tokens, token, left, right, rows, columns, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Where the matrices of some tokens lie, one below the other, and what of that is there.

    token, left and right are the strides of tokens, rows and columns.
    """
    index = tl.arange(0, TOKENS * ROWS)
    this, row, column = first + index // ROWS, index % ROWS, tl.arange(0, COLUMNS)
    is_row = (this < tokens) & (row < rows)
    start = this.to(tl.int64) * token + row * left
    return start[:, None] + (column * right)[None, :], is_row[:, None] & (column < columns)[None, :]


@triton.jit
def _factor(matrix, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A whole factor, padded with zeros."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return tl.load(
        matrix + row * row_stride + column * column_stride, mask=(row < rows) & (column < columns), other=0.0
    )


@triton.jit
def _transposed(matrices, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each of the matrices that lie one below the other transposed."""
    apart = tl.reshape(matrices, (TOKENS, ROWS, COLUMNS))
    return tl.reshape(tl.permute(apart, (0, 2, 1)), (TOKENS * COLUMNS, ROWS))


@triton.jit
def _exact_dot(left, right):
    """left @ right, both of the type of tokens: products are exact in 16-bit types."""
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _dot(left, right, start):
    """start + left @ right for float32 on the left and the type of tokens on the right."""
    if right.dtype == tl.float32:
        return tl.dot(left, right, start, input_precision="ieee")
    # All of left that tf32 holds, and the rest; 16-bit values are tf32 already.
    upper = (left.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
    start = tl.dot(left - upper, right.to(tl.float32), start, input_precision="tf32")
    return tl.dot(upper, right.to(tl.float32), start, input_precision="tf32")


@_tuning.tuned(CONFIGS, key=["shape_class", "P", "Q", "R", "S"], prune=fitting)
@triton.jit(do_not_specialize=["shape_class"])
def product_kernel(
    x,
    a,
    b,
    base,
    y,
    scale,
    tokens,
    p,
    q,
    r,
    s,
    x_group,
    x_token,
    x_left,
    x_right,
    a_group,
    a_row,
    a_column,
    b_group,
    b_row,
    b_column,
    base_group,
    base_token,
    y_left,
    y_right,
    shape_class,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """`base + scale * a X b^T` for a block of tokens of one group; x_group and its like are strides."""
    blocks = tl.cdiv(tokens, TOKENS)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * TOKENS
    place, is_there = _places(first, tokens, x_token, x_left, x_right, q, s, TOKENS, Q, S)
    values = tl.load(x + group * x_group + place, mask=is_there, other=0.0)
    between = _exact_dot(values, _factor(b + group * b_group, s, r, b_column, b_row, S, R))
    left = _factor(a + group * a_group, q, p, a_column, a_row, Q, P)
    result = scale * _dot(_transposed(between, TOKENS, Q, R), left, tl.zeros((TOKENS * R, P), tl.float32))

    if base is not None:
        place, is_there = _places(first, tokens, base_token, y_right, y_left, r, p, TOKENS, R, P)
        result += tl.load(base + group * base_group + place, mask=is_there, other=0.0).to(tl.float32)
    place, is_there = _places(first, tokens, p * r, y_right, y_left, r, p, TOKENS, R, P)
    tl.store(y + group * tokens * p * r + place, result.to(y.dtype.element_ty), mask=is_there)


@_tuning.tuned(CONFIGS, key=["shape_class", "P", "Q", "R", "S"], prune=fitting)
@triton.jit(do_not_specialize=["shape_class"])
def pullback_kernel(
    g,
    x,
    b,
    sums,
    tokens,
    p,
    q,
    r,
    s,
    g_group,
    g_token,
    g_left,
    g_right,
    x_group,
    x_token,
    x_left,
    x_right,
    b_group,
    b_row,
    b_column,
    shape_class,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    TOKENS_OF_A_SUM: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The sum of G (X b^T)^T, (p, q), over some tokens of one group."""
    count = tl.cdiv(tokens, TOKENS_OF_A_SUM)
    program = tl.program_id(0).to(tl.int64)
    group, start = program // count, (program % count * TOKENS_OF_A_SUM).to(tl.int32)
    right = _factor(b + group * b_group, s, r, b_column, b_row, S, R)
    g += group * g_group
    x += group * x_group
    total = tl.zeros((Q, P), tl.float32)
    for first in range(start, tl.minimum(start + TOKENS_OF_A_SUM, tokens), TOKENS):
        place, is_there = _places(first, tokens, x_token, x_left, x_right, q, s, TOKENS, Q, S)
        between = _exact_dot(tl.load(x + place, mask=is_there, other=0.0), right)
        place, is_there = _places(first, tokens, g_token, g_right, g_left, r, p, TOKENS, R, P)
        values = tl.load(g + place, mask=is_there, other=0.0)
        total = _dot(tl.trans(_transposed(between, TOKENS, Q, R)), values, total)
    row, column = tl.arange(0, Q)[:, None], tl.arange(0, P)[None, :]
    tl.store(sums + program * p * q + column * q + row, total, mask=(row < q) & (column < p))


def kronecker(x: Tensor, a: Tensor, b: Tensor, base: Tensor | None, scale: float, transposed: bool) -> Tensor:
    """`base + scale * x @ kron(a, b).T`, `x @ kron(a, b)` when transposed."""
    if transposed:
        a, b = a.mT, b.mT
    (p, q), (r, s) = a.shape[1:], b.shape[1:]
    _require_served(x, p, q, r, s)
    groups, tokens, _ = x.shape
    x, base = _tuning.with_contiguous_rows(x), None if base is None else _tuning.with_contiguous_rows(base)
    y = x.new_empty(groups, tokens, p * r)
    x_strides, y_strides = (s, 1), (r, 1)
    if q * r * (s + p) > p * s * (q + r):  # b ⊗ a on X^T costs less
        a, b, x_strides, y_strides = b, a, (1, s), (1, r)
    sizes = (*a.shape[1:], *b.shape[1:])

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (groups * triton.cdiv(tokens, meta["TOKENS"]),)

    if y.numel() != 0:
        with _tuning.device_of(x):
            product_kernel[grid](
                x,
                a,
                b,
                base,
                y,
                scale,
                tokens,
                *sizes,
                *x.stride()[:2],
                *x_strides,
                *a.stride(),
                *b.stride(),
                *((0, 0) if base is None else base.stride()[:2]),
                *y_strides,
                _tuning.shape_class(tokens),
                **_padded_sizes(*sizes),
                enable_fp_fusion=True,
            )
    return y


def kronecker_pullback_left(g: Tensor, x: Tensor, b: Tensor, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ kron(a, b).T>` with respect to a."""
    r, s = b.shape[1:]
    g_sizes, x_sizes = (g.shape[-1] // r, r), (x.shape[-1] // s, s)
    return _pullback(g, g_sizes, (r, 1), x, x_sizes, (s, 1), b, scale)


def kronecker_pullback_right(g: Tensor, x: Tensor, a: Tensor, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ kron(a, b).T>` with respect to b."""
    p, q = a.shape[1:]
    r, s = g.shape[-1] // p, x.shape[-1] // q
    return _pullback(g, (r, p), (1, r), x, (s, q), (1, s), a, scale)


def kronecker_backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `scale * <g, x @ kron(a, b).T>` with respect to x, a and b.

    Three kernels: all that one of them holds would not fit the registers.
    """
    return (
        kronecker(g, a, b, None, scale, True),
        kronecker_pullback_left(g, x, b, scale),
        kronecker_pullback_right(g, x, a, scale),
    )


Sizes = tuple[int, int]


def _pullback(
    g: Tensor, g_sizes: Sizes, g_strides: Sizes, x: Tensor, x_sizes: Sizes, x_strides: Sizes, b: Tensor, scale: float
) -> Tensor:
    """`scale` times the sum over tokens of G (X b^T)^T, for G (p, r) and X (q, s) with these strides."""
    (p, r), (q, s) = g_sizes, x_sizes
    if q * r * (s + p) > p * s * (q + r):  # X (G b)^T, the transpose, costs less
        return _pullback_in_order(x, x_sizes, x_strides, g, g_sizes, g_strides, b.mT, scale).mT.contiguous()
    return _pullback_in_order(g, g_sizes, g_strides, x, x_sizes, x_strides, b, scale)


def _pullback_in_order(
    g: Tensor, g_sizes: Sizes, g_strides: Sizes, x: Tensor, x_sizes: Sizes, x_strides: Sizes, b: Tensor, scale: float
) -> Tensor:
    """`_pullback` by way of X b^T."""
    (p, r), (q, s) = g_sizes, x_sizes
    _require_served(x, p, q, r, s)
    groups, tokens, _ = x.shape
    g, x = _tuning.with_contiguous_rows(g), _tuning.with_contiguous_rows(x)
    sums = x.new_empty(groups, triton.cdiv(tokens, TOKENS_OF_A_SUM), p, q, dtype=torch.float32)
    if sums.numel() != 0:
        with _tuning.device_of(x):
            pullback_kernel[(groups * sums.shape[1],)](
                g,
                x,
                b,
                sums,
                tokens,
                p,
                q,
                r,
                s,
                *g.stride()[:2],
                *g_strides,
                *x.stride()[:2],
                *x_strides,
                *b.stride(),
                _tuning.shape_class(tokens),
                **_padded_sizes(p, q, r, s),
                TOKENS_OF_A_SUM=TOKENS_OF_A_SUM,
                enable_fp_fusion=True,
            )
    return summed(sums, scale, x.dtype)
