"""The product with a matrix of low rank, given by its two factors."""

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import product


def low_rank_linear(x: Tensor, A: Tensor, B: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the m x n matrix `W = B A` of rank r at most, by two matrix products: LoRA (arXiv 2106.09685).

    Args:
        x: tokens, (..., n).
        A: right factor, (r, n).
        B: left factor, (m, r).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `base + scale * F.linear(F.linear(x, A), B)`.
    """
    _checks.require_factors(A, B)
    return product(_matrices.low_rank, x, {"A": A, "B": B}, base, scale)
