"""Triton kernels: the structured GEMM, the diagonal and Kronecker products, and products with an adapter a token.

Their functions have the signatures and values of the operators of docs/architecture.md and take tensors in any layout.
Importing this package needs neither a GPU nor Triton. Its modules need Triton, so ask `available` first. With
TRITON_INTERPRET=1 set before Triton is imported they run on CPU tensors, slowly.
"""

OLDEST = (3, 6)  # the first release these kernels are compiled with


def _why_not() -> str:
    """What keeps the kernels from running, empty if nothing does."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"Triton {triton.__version__} is older than {OLDEST[0]}.{OLDEST[1]}"
    return ""


reason: str = _why_not()
available: bool = not reason
