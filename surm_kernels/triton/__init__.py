"""Triton kernels: the structured GEMM, the diagonal and Kronecker products, and products with an adapter a token.

Their functions have the signatures and values of the operators of docs/architecture.md and take tensors in any layout.
Importing this package needs neither a GPU nor Triton. Its modules need Triton, so ask `why_not` first. With
TRITON_INTERPRET=1 set before Triton is imported they run on CPU tensors, slowly.
"""

from functools import cache

OLDEST = (3, 6)  # the first release these kernels are compiled with


@cache
def why_not() -> str:
    """What keeps the kernels from running, empty if nothing does. Imports Triton, which takes long."""
    try:
        import triton
    except Exception as error:  # a broken installation may raise anything
        return f"Triton cannot be imported: {error}"
    return why_too_old(triton.__version__)


def why_too_old(version: str) -> str:
    """Why the kernels do not run with this release of Triton, empty if they do."""
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is older than {OLDEST[0]}.{OLDEST[1]}"
    return ""
