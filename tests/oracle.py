"""The dense float64 matrix by its index formula, the sums over it, and the errors and tolerances of every parity test.

Independent of the package's products. v is (M, K, b): the operators' shape without the leading group dimension.
"""

import torch
from torch import Tensor

from surm_kernels import _extension

FLOAT32_TOLERANCE = 2e-6
# torch.fft through MKL is off by 1.3e-14 where the size has a large prime factor, such as 11008 = 256 * 43.
FLOAT64_TOLERANCE = 1e-14 if _extension.available else 2e-14
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
    blocks = w.double().reshape(w.shape[0] // block, block, w.shape[1] // block, block).transpose(1, 2)
    # Rows twice as long, read one entry shorter, shift row i by i: diagonals i - j = k - block + 1 become columns k.
    sheared = torch.nn.functional.pad(blocks.flip(-1), (0, block)).flatten(-2)[..., :-block]
    sums = sheared.unflatten(-1, (block, 2 * block - 1)).sum(-2)
    above, below = sums[..., : block - 1], sums[..., block - 1 :]
    return below + f * torch.nn.functional.pad(above, (1, 0))


def matrix_rows(v: Tensor, f: float, rows: Tensor) -> Tensor:
    """Some rows of f_circulant(v, f)."""
    size = len(v)
    difference = rows[:, None] - torch.arange(size)
    entries = v.double()[difference % size]
    return torch.where(difference >= 0, entries, f * entries)


def matrix_columns(v: Tensor, f: float, columns: Tensor) -> Tensor:
    """Some columns of f_circulant(v, f), as rows."""
    size = len(v)
    difference = torch.arange(size) - columns[:, None]
    entries = v.double()[difference % size]
    return torch.where(difference >= 0, entries, f * entries)


def some_diagonal_sums(g: Tensor, x: Tensor, f: float, diagonals: Tensor) -> Tensor:
    """Some entries of diagonal_sums(g.T @ x) for one block, without that matrix."""
    windows = torch.cat([g, f * g], 1).double().unfold(1, x.shape[1], 1)
    return torch.einsum("tkj,tj->k", windows[:, diagonals], x.double())


def error(got: Tensor, exact: Tensor, size: float = 0.0) -> float:
    """Normwise error relative to the answer; zero answers must be met exactly.

    `size` is the norm the answer has when its terms do not happen to cancel, which no sum of rounded terms survives.
    """
    difference, size = (got.double() - exact).norm().item(), max(size, exact.norm().item())
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def allowed_error(dtype: torch.dtype, exact: Tensor, size: float = 0.0) -> float:
    if dtype == torch.float64:
        return FLOAT64_TOLERANCE
    if dtype == torch.float32:
        return FLOAT32_TOLERANCE
    return ROUNDING_FACTOR * error(exact.to(dtype), exact, size) + FLOAT32_TOLERANCE


def assert_close(got: Tensor, exact: Tensor, name: str = "result", size: float = 0.0) -> None:
    """`got` has the shape of the float64 `exact`, and an error that math.md allows its type."""
    assert got.shape == exact.shape, f"{name} has shape {tuple(got.shape)}, wanted {tuple(exact.shape)}"
    found, allowed = error(got, exact, size), allowed_error(got.dtype, exact, size)
    assert found <= allowed, f"{name} is off by {found:.2e}, allowed are {allowed:.2e}"


def assert_rows_close(got: Tensor, exact: Tensor, name: str = "result") -> None:
    """`assert_close` of every row against its own size."""
    for index, (row, exact_row) in enumerate(zip(got.flatten(0, -2), exact.flatten(0, -2), strict=True)):
        assert_close(row, exact_row, f"row {index} of {name}")
