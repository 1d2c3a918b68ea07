"""The circulant, Toeplitz, Hankel, Vandermonde(-like) and Cauchy-like operators as structured matrix products.

O(m n) a token, as a dense matrix product costs, but W is generated tile by tile inside the kernels and its gradient is
folded onto the parameters there. Signatures and values are those of docs/architecture.md, for 16-bit types and float32.
A token that is not finite gives NaN or infinity in its own row of the product alone, and in those entries of a
parameter's gradient that it takes part in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels.block_kinds import KINDS
from surm_kernels.triton import _tuning
from surm_kernels.triton.structured_fold import fold, fold_cauchy, fold_vandermonde
from surm_kernels.triton.structured_product import product
from surm_kernels.triton.tiles import POWERS, Matrix


def grid(
    x: Tensor, values: Tensor, base: Tensor | None, kind: int, columns: int, scale: float, transposed: bool
) -> Tensor:
    """`base + scale * x @ W.T`, `base + scale * x @ W` when transposed; in float32 where the values are."""
    _tuning.require_float32_or_less("x", x)
    _, out_blocks, in_blocks, size = values.shape
    block = KINDS[kind]
    matrix = _blocks(block.name, values, block.rows(size, columns), columns, out_blocks, in_blocks)
    return product(x, matrix, base, scale, transposed)


def grid_pullback(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to the values."""
    _tuning.require_float32_or_less("x", x)
    return fold(g, x, KINDS[kind].name, rows, columns, scale, x.dtype)


def grid_backward(
    g: Tensor, x: Tensor, values: Tensor, kind: int, columns: int, scale: float, transposed: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of `scale * <g, x @ W.T>`, `x @ W` when transposed, with respect to x and the values."""
    x_gradient = grid(g, values, None, kind, columns, scale, not transposed)
    outer, inner = (x, g) if transposed else (g, x)
    rows = KINDS[kind].rows(values.shape[-1], columns)
    return x_gradient, fold(outer, inner, KINDS[kind].name, rows, columns, scale, values.dtype)


def generated(x: Tensor, parameters: Sequence[Tensor], base: Tensor | None, kind: str, scale: float) -> Tensor:
    """`base + scale * x @ W.T` for the Vandermonde(-like) or Cauchy-like W of the parameters, computed in float32."""
    _tuning.require_float32_or_less("x", x)
    tokens = x.reshape(1, -1, x.shape[-1])
    start = None if base is None else base.reshape(1, -1, base.shape[-1])
    if kind == "vandermonde_like":
        v, G, H = parameters
        middle = product(tokens.float(), _shifts(H), None, 1.0, False)
        y = product(middle, _vandermonde(v, H.shape[1], G), start, scale, False).to(x.dtype)
    else:
        y = product(tokens, _matrix(kind, x.shape[-1], parameters), start, scale, False)
    return y.view(*x.shape[:-1], y.shape[-1])


def generated_backward(
    g: Tensor, x: Tensor, parameters: Sequence[Tensor], kind: str, scale: float, need_x: bool, need_parameters: bool
) -> list[Tensor]:
    """The gradients of `scale * <g, x @ W.T>`: that of x if needed, then those of all parameters if needed."""
    _tuning.require_float32_or_less("x", x)
    outer, inner = g.reshape(1, -1, g.shape[-1]), x.reshape(1, -1, x.shape[-1])
    if kind == "vandermonde_like":
        x_gradients, gradients = _vandermonde_like_gradients(outer, inner, parameters, scale, need_x, need_parameters)
    else:
        matrix = _matrix(kind, x.shape[-1], parameters)
        x_gradients = [product(outer, matrix, None, scale, True)] if need_x else []
        gradients = _gradients(outer[0], inner[0], matrix, scale, parameters[0].dtype) if need_parameters else []
    return [gradient.view(x.shape) for gradient in x_gradients] + gradients


def _gradients(g: Tensor, x: Tensor, matrix: Matrix, scale: float, dtype: torch.dtype) -> list[Tensor]:
    """The gradients of the parameters of a Vandermonde or Cauchy-like matrix."""
    if matrix.kind == "vandermonde":
        return fold_vandermonde(g, x, matrix, scale, dtype)
    of_rows, of_columns = fold_cauchy(g, x, matrix, scale, dtype)
    return [of_rows[0], of_columns[0], of_rows[1:], of_columns[1:]]


def _vandermonde_like_gradients(
    g: Tensor, x: Tensor, parameters: Sequence[Tensor], scale: float, need_x: bool, need_parameters: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Through the product of x with the shifts of H, and its gradient."""
    v, G, H = parameters
    columns, shifts = H.shape[1], _shifts(H)
    powers = _vandermonde(v, columns, G)
    middle_gradient = product(g.float(), powers, None, scale, True)
    x_gradients = [product(middle_gradient, shifts, None, 1.0, True).to(x.dtype)] if need_x else []
    if not need_parameters:
        return x_gradients, []
    middle = product(x.float(), shifts, None, 1.0, False)
    v_gradient, G_gradient = fold_vandermonde(g[0].float(), middle[0], powers, scale, v.dtype)
    diagonals = fold(middle_gradient, x.float(), "toeplitz", columns, columns, 1.0, H.dtype)
    return x_gradients, [v_gradient, G_gradient, diagonals[0, :, 0, :columns].flip(-1)]


def _blocks(kind: str, theta: Tensor, rows: int, columns: int, out_blocks: int, in_blocks: int) -> Matrix:
    return Matrix(kind, theta.contiguous(), rows, columns, in_blocks, out_blocks * rows, in_blocks * columns)


def _matrix(kind: str, columns: int, parameters: Sequence[Tensor]) -> Matrix:
    """A Vandermonde or Cauchy-like matrix, in float32."""
    if kind == "vandermonde":
        return _vandermonde(parameters[0], columns, None)
    v, u, G, H = parameters
    theta = torch.cat([parameter.float().flatten() for parameter in (v, u, G, H)])[None]
    return Matrix(kind, theta, len(v), len(u), len(G), len(v), len(u))


def _vandermonde(v: Tensor, columns: int, w: Tensor | None) -> Matrix:
    """v[i]^j for j < columns, or the blocks w[l, i] v[i]^j side by side; powers are rounded from float64."""
    nodes = v.double()[:, None]
    low = nodes ** torch.arange(POWERS, device=v.device)
    high = nodes ** torch.arange(0, columns, POWERS, device=v.device)
    tables = [table.float().flatten() for table in (low, high, *([] if w is None else [w]))]
    kind, in_blocks = ("vandermonde", 1) if w is None else ("weighted_vandermonde", len(w))
    return Matrix(kind, torch.cat(tables)[None], len(v), columns, in_blocks, len(v), in_blocks * columns)


def _shifts(H: Tensor) -> Matrix:
    """The matrices Z_0(H[l])^T, one upon the other: upper triangular Toeplitz blocks, in float32."""
    rank, columns = H.shape
    t = torch.cat([H.float().flip(-1), H.new_zeros(rank, columns - 1, dtype=torch.float32)], 1)
    return _blocks("toeplitz", t[None, :, None], columns, columns, rank, 1)
