"""SiVA's preparation of a frozen weight: its singular vectors, how many of them to keep, and a fingerprint of those.

SiVA adapts a weight of m x n by `U diag(s) V^T` over k pairs of its own singular vectors, by default those of the
smallest singular values. U and V are frozen, and s alone is trained and stored, so whoever loads s must find the same
U and V again: the fingerprint tells. A weight that is no floating tensor raises a TypeError; one that is no matrix, and
a count or a share that cannot be, a ValueError.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from surm_kernels import _checks, _random_words
from surm_kernels.ops import _mode

BASES = ("bottom", "top", "random")
RULES = ("variance", "sum")
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}

#: The `difference` of fingerprints from which on bases count as others. The same bases differ by 1e-7 where they are
#: decomposed again in float64 and by 0.003 where one copy is in bfloat16, no more than by rounding s to that type.
#: Those of a weight rounded to bfloat16 differ by 0.05 to 0.2, those of a null space by another LAPACK driver by 1.4.
TOLERANCE = 0.01

_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The thin singular value decomposition `U @ diag(singular_values) @ V.T` of a matrix of m x n, r = min(m, n).

    U is (m, r), singular_values (r,) and descending, V (n, r), all of one type.
    """

    U: Tensor
    singular_values: Tensor
    V: Tensor


@torch.no_grad()
def decompose(weight: Tensor, *, precision: str = "float64") -> Decomposition:
    """The singular value decomposition of a weight, the largest entry of each column of U positive.

    The time grows as m n min(m, n): in float64 on two cores a second or two at 1536 x 1536, half a minute at
    4096 x 4096. float32 takes two thirds of that, but leaves the vectors of close singular values so uncertain that
    another machine may find others.

    Args:
        weight: (m, n), of any floating type.
        precision: "float64" or "float32", to compute in and of the result.

    Raises:
        TypeError: `weight` is no floating tensor.
        ValueError: `weight` is no matrix or not finite, `precision` another type.

    Equivalent to `torch.linalg.svd(weight.to(precision), full_matrices=False)` but for signs, with V and not V^T.
    """
    _checks.require_matrix("weight", weight, "(m, n)")
    _require_finite("weight", weight)
    _checks.require_choice("precision", precision, PRECISIONS)
    U, singular_values, Vh = torch.linalg.svd(weight.to(PRECISIONS[precision]), full_matrices=False)
    # A pair of vectors is known up to a common sign.
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -torch.ones_like(largest), torch.ones_like(largest))
    return Decomposition(U * sign, singular_values, Vh.mT * sign)


def count(singular_values: Tensor, perc: float = 0.95, *, rule: str = "variance") -> int:
    """How many of the smallest singular values SiVA adapts: those beyond the share `perc` of the spectrum.

    `r = min{r : sum_{i <= r} sigma_i^2 / sum_i sigma_i^2 >= perc}` and `k = max(1, min(m, n) - r)`. SiVA's authors take
    perc = 0.95 for ViT and RoBERTa, 0.997 for Llama 2 7B.

    Args:
        singular_values: all min(m, n) of them, descending, (r,).
        perc: above 0 and at most 1.
        rule: "variance", by which the authors' counts come out, or "sum" for sums of sigma itself.

    Raises:
        TypeError: `singular_values` is no floating tensor, `perc` no number.
        ValueError: `singular_values` is no vector or not finite, `perc` or `rule` is beyond what is allowed.

    Equivalent to `max(1, len(sigma) - 1 - int((sigma.square().cumsum(0) / sigma.square().sum() < perc).sum()))`.
    """
    _checks.require_vector("singular_values", singular_values, "(r,)")
    _require_finite("singular_values", singular_values)
    _checks.require_number("perc", perc)
    if not 0 < perc <= 1:
        raise ValueError(f"perc must be above 0 and at most 1, got {perc}")
    _checks.require_choice("rule", rule, RULES)
    terms = singular_values.double()
    sums = (terms.square() if rule == "variance" else terms).cumsum(0)
    shares = sums / sums[-1]  # its own last value, so that the last share is 1 and perc = 1 is reached
    return max(1, len(shares) - 1 - int((shares < perc).sum()))


@torch.no_grad()
def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli, The effective rank, 2007).

    From 1 to min(m, n), and 0 of the zero matrix; computed in float64.

    Args:
        matrix: (m, n), of any floating type.

    Raises:
        TypeError: `matrix` is no floating tensor.
        ValueError: `matrix` is no matrix or not finite.

    Equivalent to `torch.distributions.Categorical(torch.linalg.svdvals(matrix)).entropy().exp()`.
    """
    _checks.require_matrix("matrix", matrix, "(m, n)")
    _require_finite("matrix", matrix)
    singular_values = torch.linalg.svdvals(matrix.double())
    total = singular_values.sum()
    return torch.special.entr(singular_values / total).sum().exp().item() if total else 0.0


@torch.no_grad()
def bases(
    weight: Tensor | Decomposition,
    *,
    perc: float = 0.95,
    k: int | None = None,
    basis: str = "bottom",
    rule: str = "variance",
    precision: str = "float64",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The frozen U (m, k) and V (n, k) of SiVA's update `U diag(s) V^T`, both with orthonormal columns.

    Args:
        weight: the frozen weight, (m, n), or its decomposition.
        perc: the share of the spectrum to leave alone, see `count`; not read where k is given.
        k: how many pairs of vectors, from 1 to min(m, n).
        basis: "bottom" for the singular vectors of the smallest singular values, "top" for those of the largest, in
            descending order; "random" for random orthonormal ones, as many.
        rule: see `count`.
        precision: see `decompose`; not read where weight is a decomposition.
        seed: of basis "random", any int. The columns are made orthonormal in float64 from numbers of a generator of
            this package: the same on every machine, but for rounding.

    Returns:
        U and V, contiguous, in the type of the weight (of the decomposition) and on its device.

    Raises:
        TypeError: `weight` is no floating tensor and no decomposition, `k` or `seed` no int, `perc` no number.
        ValueError: a shape or value beyond what is allowed.

    Equivalent, for "bottom", to `(svd.U[:, -k:], svd.V[:, -k:])`.
    """
    _checks.require_choice("basis", basis, BASES)
    if basis == "random" and k is not None and isinstance(weight, Tensor):  # no spectrum to wait for
        _checks.require_matrix("weight", weight, "(m, n)")
        rows, columns = weight.shape
        return _random_bases(weight, rows, columns, k, seed)
    known = weight if isinstance(weight, Decomposition) else decompose(weight, precision=precision)
    like = weight if isinstance(weight, Tensor) else known.U
    if k is None and _mode.is_hollow(known.singular_values):
        raise ValueError(f"k must be given where the weight has no values to count, got None on {like.device}")
    k = count(known.singular_values, perc, rule=rule) if k is None else k
    rows, columns = len(known.U), len(known.V)
    if basis == "random":
        return _random_bases(like, rows, columns, k, seed)
    require_count(k, rows, columns)
    kept = slice(k) if basis == "top" else slice(min(rows, columns) - k, None)
    return _copy(known.U[:, kept], like), _copy(known.V[:, kept], like)


@torch.no_grad()
def fingerprint(U: Tensor, V: Tensor) -> Tensor:
    """64 numbers by which to tell whether two pairs of bases give the same update for the same s.

    `F_i = p_i^T U diag(w_i) V^T q_i` with fixed random signs p_i, q_i and w_i. The common sign of a pair of columns
    does not matter, and `|F - F'|^2 / |F|^2` estimates that of the update, `|W - W'|^2 / |W|^2` for W = U diag(s) V^T,
    averaged over random s, with 64 samples (Hutchinson's way of estimating a trace, 1990).

    Args:
        U: (m, k), of any floating type.
        V: (n, k), likewise.

    Returns:
        F in float32, (64,), on the device of U, computed in float64.

    Raises:
        TypeError: `U` or `V` is no floating tensor.
        ValueError: they are no matrices with as many columns, or on two devices.

    Equivalent to `torch.stack([p @ U @ diag(w) @ V.T @ q for p, w, q in zip(P, w, Q)])`.
    """
    _checks.require_matrix("U", U, "(m, k)")
    _checks.require_matrix("V", V, "(n, k)")
    _checks.require_shape("V", V, (V.shape[0], U.shape[1]), "(n, k) with k as in U")
    _checks.require_same_device(U, "V", V, of="U")
    P, w, Q = (
        _random_words.signs(stream, _SAMPLES, size, device=U.device)
        for stream, size in enumerate((U.shape[0], U.shape[1], V.shape[0]))
    )
    return ((P @ U.double()) * w * (Q @ V.double())).sum(1).float()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """How much an update changes, relative to its norm, from the bases of one fingerprint to those of another.

    An estimate of the root mean square over random s; about 1.4 for bases that have nothing to do with each other, and
    infinite where a fingerprint is none: of another shape, or not finite.

    Equivalent to `(ours - theirs).norm() / ours.norm()`.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().double(), theirs.detach().to(ours.device, torch.float64)
    change = ((ours - theirs).norm() / ours.norm()).item()
    return float("inf") if change != change else change


def require_count(k: int, rows: int, columns: int) -> None:
    """An int from 1 to min(rows, columns), how many pairs of singular vectors a matrix has."""
    _checks.require_size("k", k)
    if k > min(rows, columns):
        raise ValueError(f"k must be at most {min(rows, columns)} for a weight of {rows} x {columns}, got {k}")


def _random_bases(like: Tensor, rows: int, columns: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    require_count(k, rows, columns)
    _checks.require_int("seed", seed)
    U, V = _random_words.normals(seed, rows + columns, k).split((rows, columns))
    return _copy(_orthonormal(U), like), _copy(_orthonormal(V), like)


def _orthonormal(columns: Tensor) -> Tensor:
    """The columns made orthonormal in their order, uniformly distributed for normal ones (Stewart, 1980)."""
    Q, R = torch.linalg.qr(columns)
    return Q * R.diagonal().sign()


def _copy(columns: Tensor, like: Tensor) -> Tensor:
    """A contiguous matrix in the type and on the device of another, with memory of its own."""
    return columns.to(like.device, like.dtype).clone(memory_format=torch.contiguous_format)


def _require_finite(name: str, value: Tensor) -> None:
    if not _mode.is_hollow(value) and not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~value.isfinite()).sum())} values that are not")
