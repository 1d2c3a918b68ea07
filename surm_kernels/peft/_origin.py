"""What an adapter's file says of the layers it was trained on: their sizes, and of SiVA a fingerprint of the bases."""

from torch import Tensor

from surm_kernels import siva

START = "the adapter's tensors do not fit"


def require_sizes(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Those of one layer, (out_features, in_features); not compared where one is on the meta device."""
    if not (ours.is_meta or theirs.is_meta) and ours.tolist() != theirs.tolist():
        raise ValueError(f"{START}: {name} must be of a layer of {_by(ours)}, got {_by(theirs)}")


def require_fingerprint(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Of the same bases, but for rounding; not compared where one is on the meta device."""
    if ours.is_meta or theirs.is_meta:
        return
    change = siva.difference(ours, theirs)
    if not change <= siva.TOLERANCE:
        raise ValueError(
            f"{START}: {name} says that the adapter was trained on another weight than this model has: the update "
            f"would change by about {100 * change:.2g} %. Load it over the same weights in the type of training, or "
            f"save it with save_bases=True."
        )


def _by(sizes: Tensor) -> str:
    return " x ".join(map(str, sizes.tolist()))
