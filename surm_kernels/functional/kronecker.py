"""The product with a Kronecker product of two matrices."""

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import product


def kronecker_linear(x: Tensor, A: Tensor, B: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the p r x q s Kronecker product `W = A ⊗ B`, of SURM (arXiv 2406.17740) and LoKr (2309.14859).

    A token read row by row as a q x s matrix X becomes A X B^T, in the cheaper of the two orders (Golub and Van Loan,
    Matrix Computations, section 1.3).

    Args:
        x: tokens, (..., q s).
        A: left factor, (p, q).
        B: right factor, (r, s).
        base: added to the product, broadcastable to (..., p r).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., p r).

    Equivalent to `F.linear(x, scale * torch.kron(A, B), bias=base)`.
    """
    _checks.require_matrix("A", A, "(p, q)")
    _checks.require_matrix("B", B, "(r, s)")
    return product(_matrices.kronecker, x, {"A": A, "B": B}, base, scale)
