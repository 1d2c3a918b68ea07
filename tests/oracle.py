"""The dense float64 matrix by its index formula, the sums over it, and the errors and tolerances of every parity test.

Independent of the package. Shapes are those of the operators without the leading group dimension: v is (M, K, b).
"""

import torch
from torch import Tensor

FLOAT32_TOLERANCE = 2e-6
FLOAT64_TOLERANCE = 1e-14
ROUNDING_FACTOR = 1.05  # 16-bit: times the error of rounding the exact answer
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def f_circulant(v: Tensor, f: float) -> Tensor:
    """W[i, j] = v[i - j] if i >= j, else f * v[n + i - j], for v of shape (n,): a window of [f v[1:], v] a row."""
    v = v.double()
    return torch.cat([f * v[1:], v]).unfold(0, len(v), 1).flip(1)


def matrix(v: Tensor, f: float) -> Tensor:
    """The (M b, K b) matrix of blocks f_circulant(v[p, q])."""
    return torch.cat([torch.cat([f_circulant(block, f) for block in row], 1) for row in v], 0)


def diagonal_sums(w: Tensor, block: int, f: float) -> Tensor:
    """The gradient of <w, matrix(v, f)> with respect to v: sums over the f-circulant diagonals of each block."""
    w = w.double()
    blocks = w.reshape(w.shape[0] // block, block, w.shape[1] // block, block).transpose(1, 2)
    i, j = torch.meshgrid(torch.arange(block), torch.arange(block), indexing="ij")
    weighted = blocks * torch.where(i >= j, 1.0, float(f)).double()
    sums = torch.zeros(*blocks.shape[:2], block, dtype=torch.float64)
    return sums.index_add_(2, ((i - j) % block).flatten(), weighted.flatten(2))


def matrix_rows(v: Tensor, f: float, rows: Tensor) -> Tensor:
    """Some rows of f_circulant(v, f)."""
    size = len(v)
    difference = rows[:, None] - torch.arange(size)
    return v.double()[difference % size] * torch.where(difference >= 0, 1.0, float(f))


def matrix_columns(v: Tensor, f: float, columns: Tensor) -> Tensor:
    """Some columns of f_circulant(v, f), as rows."""
    size = len(v)
    difference = torch.arange(size) - columns[:, None]
    return v.double()[difference % size] * torch.where(difference >= 0, 1.0, float(f))


def some_diagonal_sums(g: Tensor, x: Tensor, f: float, diagonals: Tensor) -> Tensor:
    """Some entries of diagonal_sums(g.T @ x) for one block, without that matrix."""
    size = x.shape[-1]
    i = torch.arange(size) + diagonals[:, None]
    return torch.stack(
        [(g.double()[:, row % size] * torch.where(row < size, 1.0, float(f)) * x.double()).sum() for row in i]
    )


def error(got: Tensor, exact: Tensor) -> float:
    """Normwise relative error; zero answers must be met exactly."""
    difference, size = (got.double() - exact).norm().item(), exact.norm().item()
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def allowed_error(dtype: torch.dtype, exact: Tensor) -> float:
    if dtype == torch.float64:
        return FLOAT64_TOLERANCE
    if dtype == torch.float32:
        return FLOAT32_TOLERANCE
    return ROUNDING_FACTOR * error(exact.to(dtype), exact) + FLOAT32_TOLERANCE


def assert_close(got: Tensor, exact: Tensor, name: str = "result") -> None:
    """`got` has the shape of the float64 `exact` and its normwise error is within math's tolerance for its type."""
    assert got.shape == exact.shape, f"{name} has shape {tuple(got.shape)}, wanted {tuple(exact.shape)}"
    found, allowed = error(got, exact), allowed_error(got.dtype, exact)
    assert found <= allowed, f"{name} is off by {found:.2e}, allowed are {allowed:.2e}"


def assert_rows_close(got: Tensor, exact: Tensor, name: str = "result") -> None:
    """`assert_close` of every row against its own size."""
    for index, (row, exact_row) in enumerate(zip(got.flatten(0, -2), exact.flatten(0, -2), strict=True)):
        assert_close(row, exact_row, f"row {index} of {name}")
