"""The dense float64 matrix by its index formula, the sums over it, and the errors and tolerances of every parity test.

Independent of the package's products. Parameters have the operators' shapes without the leading group dimension: v is
(M, K, b) for circulant blocks, t is (M, K, m + n - 1) for Toeplitz blocks.
"""

import torch
from torch import Tensor

from surm_kernels import _extension
from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT

FLOAT32_TOLERANCE = 2e-6
# torch.fft through MKL is off by 1.3e-14 where the size has a large prime factor, such as 11008 = 256 * 43.
FLOAT64_TOLERANCE = 1e-14 if _extension.available else 2e-14
ROUNDING_FACTOR = 1.05  # 16-bit: times the error of rounding the exact answer
SIXTEEN_BIT = (torch.bfloat16, torch.float16)
# The types that a weight and what it is merged into may have together.
MERGED = [(dtype, dtype) for dtype in (torch.float64, torch.float32, *SIXTEEN_BIT)] + [
    pair for dtype in (torch.float64, *SIXTEEN_BIT) for pair in ((dtype, torch.float32), (torch.float32, dtype))
]

#: The f of the kinds of blocks that are f-circulant.
SIGNS = {CIRCULANT: 1.0, SKEW_CIRCULANT: -1.0}


def f_circulant(v: Tensor, f: float) -> Tensor:
    """W[i, j] = v[i - j] if i >= j, else f * v[n + i - j], for v of shape (n,): a window of [f v[1:], v] a row."""
    v = v.double()
    return torch.cat([f * v[1:], v]).unfold(0, len(v), 1).flip(1)


def matrix(v: Tensor, f: float) -> Tensor:
    """The (M b, K b) matrix of blocks f_circulant(v[p, q])."""
    return torch.cat([torch.cat([f_circulant(block, f) for block in row], 1) for row in v], 0)


def diagonal_sums(w: Tensor, block: int, f: float) -> Tensor:
    """The gradient of <w, matrix(v, f)> with respect to v: sums over the f-circulant diagonals of each block."""
    sums = antidiagonal_sums(cut(w, block, block).flip(-1))
    above, below = sums[..., : block - 1], sums[..., block - 1 :]
    return below + f * torch.nn.functional.pad(above, (1, 0))


def antidiagonal_sums(blocks: Tensor) -> Tensor:
    """The sums of blocks (..., m, n) over i + j = k, (..., m + n - 1)."""
    rows, columns = blocks.shape[-2:]
    # Rows longer by m, read one entry shorter than that, shift row i by i: antidiagonals become columns.
    sheared = torch.nn.functional.pad(blocks, (0, rows)).flatten(-2)[..., :-rows]
    return sheared.unflatten(-1, (rows, rows + columns - 1)).sum(-2)


def cut(w: Tensor, rows: int, columns: int) -> Tensor:
    """The float64 blocks (M, K, m, n) of a matrix."""
    return w.double().reshape(w.shape[0] // rows, rows, w.shape[1] // columns, columns).transpose(1, 2)


def some_diagonal_sums(g: Tensor, x: Tensor, f: float, diagonals: Tensor) -> Tensor:
    """Some entries of diagonal_sums(g.T @ x) for one block, without that matrix."""
    windows = torch.cat([g, f * g], 1).double().unfold(1, x.shape[1], 1)
    return torch.einsum("tkj,tj->k", windows[:, diagonals], x.double())


def grid(values: Tensor, kind: int, columns: int) -> Tensor:
    """The matrix of the blocks of a kind, for values (M, K, size)."""
    if kind in SIGNS:
        return matrix(values, SIGNS[kind])
    return hankel(values, columns) if kind == HANKEL else toeplitz(values, columns)


def grid_sums(w: Tensor, kind: int, rows: int, columns: int) -> Tensor:
    """The gradient of <w, grid(values, kind, columns)>: the sums over the entries that a value fills, with its sign."""
    if kind in SIGNS:
        return diagonal_sums(w, columns, SIGNS[kind])
    blocks = cut(w, rows, columns)
    return antidiagonal_sums(blocks if kind == HANKEL else blocks.flip(-1))


def entries(values: Tensor, kind: int, i: Tensor, j: Tensor, columns: int) -> Tensor:
    """The entries in rows i and columns j of one block of a kind, for values (size,)."""
    if kind == HANKEL:
        return values.double()[i + j]
    if kind not in SIGNS:
        return values.double()[i - j + columns - 1]
    return values.double()[(i - j) % columns] * torch.where(i >= j, 1.0, SIGNS[kind])


def some_grid_sums(g: Tensor, x: Tensor, kind: int, some: Tensor) -> Tensor:
    """Some entries of grid_sums(g.T @ x) for one block, without that matrix."""
    columns = x.shape[1]
    if kind in SIGNS:
        return some_diagonal_sums(g, x, SIGNS[kind], some)
    # Entry k sums g[i] x[j] over i + j = k for Hankel, over i - j + n - 1 = k for Toeplitz.
    windows = torch.nn.functional.pad(g.double(), (columns - 1, columns - 1)).unfold(1, columns, 1)[:, some]
    return torch.einsum("tkj,tj->k", windows, (x.flip(-1) if kind == HANKEL else x).double())


def toeplitz(t: Tensor, n: int) -> Tensor:
    """W[i, j] = t[i - j + n - 1], row i a window of t, reversed; t is (m + n - 1,), or (M, K, m + n - 1) for blocks."""
    return joined(t.double().unfold(-1, n, 1).flip(-1))


def hankel(h: Tensor, n: int) -> Tensor:
    """W[i, j] = h[i + j], row i a window of h; h is (m + n - 1,), or (M, K, m + n - 1) for blocks."""
    return joined(h.double().unfold(-1, n, 1))


def symmetric_toeplitz(t: Tensor) -> Tensor:
    """W[i, j] = t[|i - j|]."""
    index = torch.arange(len(t))
    return t.double()[(index[:, None] - index).abs()]


def joined(blocks: Tensor) -> Tensor:
    """The matrix of the blocks (M, K, m, n); a single block (m, n) is one already."""
    if blocks.dim() == 2:
        return blocks
    return torch.cat([torch.cat(list(row), 1) for row in blocks], 0)


def ldr(left: Tensor, right: Tensor, reflected: bool) -> Tensor:
    """The sum over l of Z_1(left[l]) Z_-1(right[l]), with its columns in reverse order when reflected."""
    total = sum(f_circulant(g, 1) @ f_circulant(h, -1) for g, h in zip(left, right, strict=True))
    return total.flip(1) if reflected else total


def toeplitz_like(G: Tensor, H: Tensor) -> Tensor:
    """The sum over l of Z_1(G[l]) Z_-1(H[l])."""
    return ldr(G, H, False)


def hankel_like(G: Tensor, H: Tensor) -> Tensor:
    """The sum over l of Z_1(G[l]) Z_0(H[l]) J."""
    return sum(f_circulant(g, 1) @ f_circulant(h, 0) for g, h in zip(G, H, strict=True)).flip(1)


def vandermonde(v: Tensor, n: int) -> Tensor:
    """W[i, j] = v[i]^j."""
    return v.double()[:, None] ** torch.arange(n)


def vandermonde_like(v: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The sum over l of diag(G[l]) V(v) Z_0(H[l])^T."""
    powers = vandermonde(v, H.shape[1])
    return sum(g.double()[:, None] * powers @ f_circulant(h, 0).T for g, h in zip(G, H, strict=True))


def cauchy_like(v: Tensor, u: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """W[i, j] is the sum over l of G[l, i] H[l, j] / (v[i] - u[j])."""
    return G.double().T @ H.double() / (v.double()[:, None] - u.double())


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """W[i r + k, j s + l] = A[i, j] B[k, l] for B of r x s: numpy.kron."""
    blocks = A.double()[:, None, :, None] * B.double()[None, :, None, :]
    return blocks.reshape(A.shape[0] * B.shape[0], A.shape[1] * B.shape[1])


def low_rank(A: Tensor, B: Tensor) -> Tensor:
    """B A for A (r, n) and B (m, r)."""
    return B.double() @ A.double()


def siva(U: Tensor, s: Tensor, V: Tensor) -> Tensor:
    """The sum over l of s[l] U[:, l] V[:, l]^T for U (m, k), s (k,) and V (n, k)."""
    return torch.einsum("ml,l,nl->mn", U.double(), s.double(), V.double())


def hydra_block(structure: str, slots: Tensor, rows: int, columns: int) -> Tensor:
    """One block of HyDRA's, made of its slots in the order of docs/structures.md."""
    if structure == "circulant":
        return f_circulant(slots, 1)[:rows, :columns]
    if structure == "toeplitz":  # first column, first row
        return toeplitz(torch.cat([slots[rows + 1 :].flip(0), slots[:rows]]), columns)
    if structure == "hankel":  # first column, last row
        return hankel(torch.cat([slots[:rows], slots[rows + 1 :]]), columns)
    if structure == "vandermonde":
        return vandermonde(slots, columns)
    if structure == "low_rank":  # vectors of the left factor, of the right factor
        rank = len(slots) // (rows + columns)
        return slots[: rank * rows].view(rank, rows).T @ slots[rank * rows :].view(rank, columns)
    G, H = slots.view(2, -1, max(rows, columns))
    return toeplitz_like(G, H)[:rows, :columns]


def error(got: Tensor, exact: Tensor, size: float = 0.0) -> float:
    """Normwise error relative to the answer; zero answers must be met exactly.

    `size` is the norm the answer has when its terms do not happen to cancel, which no sum of rounded terms survives.
    """
    difference, size = (got.double() - exact).norm().item(), max(size, exact.norm().item())
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def allowed_error(dtype: torch.dtype, exact: Tensor, size: float = 0.0, rounding: float = ROUNDING_FACTOR) -> float:
    if dtype == torch.float64:
        return FLOAT64_TOLERANCE
    if dtype == torch.float32:
        return FLOAT32_TOLERANCE
    return rounding * error(exact.to(dtype), exact, size) + FLOAT32_TOLERANCE


def assert_close(
    got: Tensor, exact: Tensor, name: str = "result", size: float = 0.0, rounding: float = ROUNDING_FACTOR
) -> None:
    """`got` has the shape of the float64 `exact`, and an error that math.md allows its type."""
    assert got.shape == exact.shape, f"{name} has shape {tuple(got.shape)}, wanted {tuple(exact.shape)}"
    found, allowed = error(got, exact, size), allowed_error(got.dtype, exact, size, rounding)
    assert found <= allowed, f"{name} is off by {found:.2e}, allowed are {allowed:.2e}"


def assert_rows_close(got: Tensor, exact: Tensor, name: str = "result") -> None:
    """`assert_close` of every row against its own size."""
    for index, (row, exact_row) in enumerate(zip(got.flatten(0, -2), exact.flatten(0, -2), strict=True)):
        assert_close(row, exact_row, f"row {index} of {name}")
