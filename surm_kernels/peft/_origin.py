"""What an adapter's file says of its layers: sizes, structure with its options, and of SiVA a fingerprint of the bases.

PEFT reads no configuration where it loads a file over an adapter that is there, so the tensors have to tell.
"""

import hashlib
import inspect

from torch import Tensor

from surm_kernels import siva
from surm_kernels.structures import Structure

START = "the adapter's tensors do not fit"


def identity(structure: Structure, alpha: float) -> int:
    """A number of 63 bits by which to tell updates apart that take the same tensors for another matrix."""
    digest = hashlib.blake2b(f"{_words(structure)} {alpha:.17g}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _words(structure: Structure) -> str:
    """Its class and the arguments that are not the default, so that options which come later change nothing."""
    parameters = inspect.signature(type(structure).__init__).parameters
    given = {name: value for name, value in structure.arguments.items() if value != parameters[name].default}
    words = (f"{name}={_words(v) if isinstance(v, Structure) else repr(v)}" for name, v in given.items())
    return f"{type(structure).__name__}({', '.join(words)})"


def require_identity(name: str, ours: Tensor, theirs: Tensor) -> None:
    """That of one structure with the same options; not compared where one is on the meta device."""
    if not (ours.is_meta or theirs.is_meta) and ours.item() != theirs.item():
        raise ValueError(
            f"{START}: {name} says that the adapter was trained with another structure, option or alpha than this one "
            f"has. Load it under a name of its own, which reads its configuration"
        )


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
