"""The product with SiVA's update: two frozen bases and the values between them."""

from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional._product import product


def siva_linear(
    x: Tensor, U: Tensor, s: Tensor, V: Tensor, *, base: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Product with the m x n matrix `W = U diag(s) V^T` of rank k at most.

    Args:
        x: tokens, (..., n).
        U: left basis, (m, k).
        s: values, (k,).
        V: right basis, (n, k).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `base + scale * ((x @ V) * s) @ U.T`.
    """
    _checks.require_bases(U, s, V)
    return product(_operator, x, {"U": U, "s": s, "V": V}, V.shape[0], U.shape[0], base, scale)


def _operator(rows: Tensor, U: Tensor, s: Tensor, V: Tensor, base: Tensor | None, scale: float) -> Tensor:
    result = scale * (((rows @ V) * s) @ U.mT)
    return result if base is None else base + result
