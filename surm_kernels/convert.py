"""Parameters from and to the conventions of other libraries: SciPy, PEFT, structured-nets, SURM, displacement theory.

All are rearrangements of their arguments and differentiable; they raise a TypeError for what is no floating tensor and
a ValueError for a shape that does not fit. A circulant matrix needs no converter: `c` is what scipy.linalg.circulant
takes. Checkpoints of models are converted as well: `load_plain_state_dict` loads that of the plain model into one with
adapted layers, `plain_state_dict` gives it back.
"""

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.nn._checkpoints import LoadedState, load_plain_state_dict, plain_state_dict

__all__ = [
    "LoadedState",
    "circulant_from_c3a",
    "circulant_from_first_row",
    "circulant_to_c3a",
    "hankel_from_scipy",
    "hankel_to_scipy",
    "kronecker_from_lokr",
    "kronecker_from_surm",
    "load_plain_state_dict",
    "plain_state_dict",
    "skew_circulant_from_first_row",
    "toeplitz_from_scipy",
    "toeplitz_like_from_displacement",
    "toeplitz_like_from_structured_nets",
    "toeplitz_like_to_displacement",
    "toeplitz_like_to_structured_nets",
    "toeplitz_to_scipy",
]


def toeplitz_from_scipy(column: Tensor, row: Tensor) -> Tensor:
    """t of the Toeplitz matrix `scipy.linalg.toeplitz(column, row)`.

    column is (m,), row (n,), t (m + n - 1,). As in SciPy the corner is column[0], row[0] is not read.
    Equivalent to `torch.cat([row[1:].flip(0), column])`.
    """
    _checks.require_vector("column", column, "(m,)")
    _checks.require_vector("row", row, "(n,)")
    return torch.cat([row[1:].flip(0), column])


def toeplitz_to_scipy(t: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """First column and first row of the Toeplitz matrix with diagonals t, as scipy.linalg.toeplitz takes them.

    t is (m + n - 1,), n the number of columns; the results are (m,) and (n,).
    Equivalent to `(t[n - 1 :], t[:n].flip(0))`.
    """
    _checks.require_vector("t", t, "(m + n - 1,)")
    _require_columns("t", t, n)
    return t[n - 1 :], t[:n].flip(0)


def hankel_from_scipy(column: Tensor, row: Tensor) -> Tensor:
    """h of the Hankel matrix `scipy.linalg.hankel(column, row)`: its first column and its last row.

    column is (m,), row (n,), h (m + n - 1,). As in SciPy the corner is column[-1], row[0] is not read.
    Equivalent to `torch.cat([column, row[1:]])`.
    """
    _checks.require_vector("column", column, "(m,)")
    _checks.require_vector("row", row, "(n,)")
    return torch.cat([column, row[1:]])


def hankel_to_scipy(h: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """First column and last row of the Hankel matrix with antidiagonals h, as scipy.linalg.hankel takes them.

    h is (m + n - 1,), n the number of columns; the results are (m,) and (n,).
    Equivalent to `(h[: len(h) - n + 1], h[len(h) - n :])`.
    """
    _checks.require_vector("h", h, "(m + n - 1,)")
    _require_columns("h", h, n)
    rows = len(h) - n + 1
    return h[:rows], h[rows - 1 :]


def circulant_from_first_row(row: Tensor) -> Tensor:
    """First column of the circulant matrix with this first row, or the other way round: `c[i] = row[-i % n]`.

    row is (..., n), many of them at once. Equivalent to `row.flip(-1).roll(1, -1)`.
    """
    _checks.require_floating("row", row)
    return row.flip(-1).roll(1, -1)


def skew_circulant_from_first_row(row: Tensor) -> Tensor:
    """First column of the skew-circulant matrix with this first row, or the other way round: the transpose.

    `s = [row[0], -row[n - 1], ..., -row[1]]`; row is (..., n). SURM's code (`skew_circulant_matrix`) has first rows.
    Equivalent to `torch.cat([row[..., :1], -row[..., 1:].flip(-1)], -1)`.
    """
    _checks.require_floating("row", row)
    return torch.cat([row[..., :1], -row[..., 1:].flip(-1)], -1)


def circulant_from_c3a(weight: Tensor, in_features: int) -> Tensor:
    """First columns c, (M, K, b), of the update of PEFT's C3A layer with the kernel `weight`, (M, K, b).

    Its kernels are first rows, and its forward divides by in_features = K b (peft/tuners/c3a/layer.py).
    Equivalent to `weight.flip(-1).roll(1, -1) / in_features`.
    """
    _require_kernel("weight", weight, in_features)
    return circulant_from_first_row(weight) / in_features


def circulant_to_c3a(c: Tensor, in_features: int) -> Tensor:
    """The kernel of PEFT's C3A layer for the block circulant update with first columns c; undoes circulant_from_c3a.

    Equivalent to `c.flip(-1).roll(1, -1) * in_features`.
    """
    _require_kernel("c", c, in_features)
    return circulant_from_first_row(c) * in_features


def kronecker_from_lokr(w1: Tensor, w2: Tensor, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """A and B of the update `kron(w1, w2) * scaling` of PEFT's LoKr layer (peft/tuners/lokr/layer.py, make_kron).

    Where a LoKr layer has factors in place of w1 or w2, pass their product, `w1_a @ w1_b`.
    Equivalent to `(w1 * scaling, w2)`.
    """
    _checks.require_matrix("w1", w1, "(p, q)")
    _checks.require_matrix("w2", w2, "(r, s)")
    _checks.require_number("scaling", scaling)
    return w1 * scaling, w2


def kronecker_from_surm(lora_A: Tensor, lora_B: Tensor, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """A and B of SURM's Kronecker update `kron(lora_B, lora_A) * scaling` (arXiv 2406.17740), scaling being alpha / r.

    Equivalent to `(lora_B * scaling, lora_A)`.
    """
    _checks.require_matrix("lora_A", lora_A, "(r, s)")
    _checks.require_matrix("lora_B", lora_B, "(p, q)")
    _checks.require_number("scaling", scaling)
    return lora_B * scaling, lora_A


def toeplitz_like_from_structured_nets(G: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """G and H of the matrix that structured-nets' `toeplitz_mult(G, H, x, cycle=True)` applies.

    That is `sum_l Z_1(G[l]) Z_-1(H[l])^T`, and the transpose of a skew-circulant matrix exchanges its first column and
    row: `h -> [h_0, -h_(n-1), ..., -h_1]`. G and H are (r, n).
    Equivalent to `(G, torch.cat([H[:, :1], -H[:, 1:].flip(1)], 1))`.
    """
    _checks.require_pair_of_generators(G, H)
    return G, skew_circulant_from_first_row(H)


def toeplitz_like_to_structured_nets(G: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Undoes toeplitz_like_from_structured_nets; the map is its own inverse."""
    return toeplitz_like_from_structured_nets(G, H)


def toeplitz_like_from_displacement(G: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """G and H of the Toeplitz-like matrix W with the displacement `Z_1 W - W Z_-1 = sum_l outer(G[l], H[l])`.

    The solution is `W = 1/2 sum_l Z_1(G[l]) Z_-1(J H[l])` with the reversal J (Pan, Structured Matrices and
    Polynomials, section 4.4); `toeplitz_like_linear` has neither the factor nor the reversal. All are (r, n).

    Equivalent to `(G / 2, H.flip(1))`.
    """
    _checks.require_pair_of_generators(G, H)
    return G / 2, H.flip(1)


def toeplitz_like_to_displacement(G: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Generators of `Z_1 W - W Z_-1 = sum_l outer(G'[l], H'[l])` for `W = sum_l Z_1(G[l]) Z_-1(H[l])`.

    Undoes toeplitz_like_from_displacement. Equivalent to `(2 * G, H.flip(1))`.
    """
    _checks.require_pair_of_generators(G, H)
    return 2 * G, H.flip(1)


def _require_columns(name: str, diagonals: Tensor, n: int) -> None:
    _checks.require_size("n", n)
    _checks.require_diagonals(name, diagonals, n)


def _require_kernel(name: str, kernel: Tensor, in_features: int) -> None:
    _checks.require_floating(name, kernel)
    _checks.require_dimensions(name, kernel, (3,), "(M, K, b)")
    if kernel.shape[1] * kernel.shape[2] != in_features:
        raise ValueError(
            f"{name} must have shape (M, K, b) with K b = in_features, {in_features}, got {tuple(kernel.shape)}"
        )
