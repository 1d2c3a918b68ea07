"""The versions of PEFT that this integration works with."""

from importlib.metadata import PackageNotFoundError, version

#: The first whose tuners see a file's tensors before they are loaded, and so can refuse those of another model.
OLDEST_PEFT = (0, 21)


def require_peft() -> None:
    """A PEFT that is installed and new enough, or an ImportError that says how to get it."""
    wanted = ".".join(map(str, OLDEST_PEFT))
    try:
        found = version("peft")
    except PackageNotFoundError:
        raise ImportError(f"surm_kernels.peft needs peft >= {wanted}: pip install 'surm-kernels[peft]'") from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_PEFT:
        raise ImportError(f"surm_kernels.peft needs peft >= {wanted}, got {found}: pip install --upgrade peft")
