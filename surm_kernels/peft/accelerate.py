"""PEFT's own C3A and LoKr on the kernels of this package, for every model of the process, those made before included.

Methods of PEFT's classes are replaced, not of instances, so copies, pickles and checkpoints are PEFT's as before.
"""

import contextlib
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import peft

from surm_kernels.peft._c3a import accelerated_forward, products
from surm_kernels.peft._lokr import accelerated_delta_activations

__all__ = ["accelerate", "accelerated", "restore"]

Function = Callable[..., Any]

#: Releases on which the replacements are tested.
KNOWN_RELEASES = "0.21"


class _Method(NamedTuple):
    """A method of a class of PEFT, with all that its replacement takes for granted."""

    module: str
    owner: str
    name: str
    parameters: tuple[str, ...]
    trained: tuple[str, ...]  # adapter_layer_names of the class
    options: tuple[str, ...]  # its other_param_names

    def __str__(self) -> str:
        return f"{self.module.removeprefix('peft.tuners.').removesuffix('.layer')}'s {self.owner}.{self.name}"


class _Replacement(NamedTuple):
    owner: type
    name: str
    original: Function
    function: Function


_C3A = _Method(
    "peft.tuners.c3a.layer",
    "C3ALinear",
    "forward",
    ("self", "x", "*args", "**kwargs"),
    ("c3a_kernel",),
    ("block_size",),
)
_LOKR = _Method(
    "peft.tuners.lokr.layer",
    "Linear",
    "_get_delta_activations",
    ("self", "adapter_name", "input", "*args", "**kwargs"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("r", "alpha", "scaling", "rank_dropout", "rank_dropout_scale", "module_dropout"),
)

# What is replaced now; it changes as a whole.
_replaced: dict[_Method, _Replacement] = {}


def accelerate(*, chain_adapters: bool = False, verbose: bool = True) -> None:
    """Runs PEFT's C3A and LoKr layers on the kernels of this package, until `restore`.

    C3A's forward becomes the block circulant product, with the right gradient of the input for every block size, the
    type of x or autocast's, empty batches, double backward and torch.func; several active adapters are added. LoKr's
    linear layers no longer form the Kronecker product, except where rank_dropout drops rows of it; its convolutions
    stay PEFT's. Parameters, checkpoints and merging stay PEFT's. Models that are compiled are compiled anew.

    Args:
        chain_adapters: whether the second active C3A adapter of a layer gets the output of the first in place of the
            layer's input, as in PEFT, which takes a square layer.
        verbose: whether to print what was changed.

    Raises:
        RuntimeError: PEFT's classes are not those that this is written for; then nothing was changed.
    """
    c3a, lokr = _known(_C3A), _known(_LOKR)
    if not peft.__version__.startswith(f"{KNOWN_RELEASES}."):
        warnings.warn(
            f"accelerate() is tested on PEFT {KNOWN_RELEASES}, not on {peft.__version__}; its classes look the same",
            stacklevel=2,
        )
    functions = {
        _C3A: c3a._replace(function=accelerated_forward(c3a.original, chain_adapters)),
        _LOKR: lokr._replace(function=accelerated_delta_activations(lokr.original)),
    }
    _replace(functions)
    if verbose:
        adapters = "chained" if chain_adapters else "added"
        print(
            f"surm_kernels: runs {' and '.join(map(str, functions))} of PEFT {peft.__version__}; "
            f"active C3A adapters are {adapters}; restore() undoes it"
        )


def restore(*, verbose: bool = True) -> None:
    """Gives PEFT its own functions back, the very same objects; nothing to do where nothing was accelerated.

    Args:
        verbose: whether to print what was changed.
    """
    names = " and ".join(map(str, _replaced))
    _replace({})
    if verbose and names:
        print(f"surm_kernels: {names} are PEFT's own again")


@contextlib.contextmanager
def accelerated(*, chain_adapters: bool = False, verbose: bool = False) -> Iterator[None]:
    """`accelerate` for a block; what was before, accelerated or not, comes back at its end."""
    before = _replaced
    accelerate(chain_adapters=chain_adapters, verbose=verbose)
    try:
        yield
    finally:
        _replace(before)


def _known(method: _Method) -> _Replacement:
    """PEFT's function, standing for itself; refused where it or its class is not what its replacement expects."""
    if method in _replaced:
        return _replaced[method]
    try:
        owner = getattr(importlib.import_module(method.module), method.owner)
        original = vars(owner)[method.name]
        found = tuple(
            str(parameter.replace(annotation=inspect.Parameter.empty))
            for parameter in inspect.signature(original).parameters.values()
        )
        fields = owner.adapter_layer_names, owner.other_param_names
    except (ImportError, AttributeError, KeyError) as error:
        raise _unknown(method, f"it has no such method ({error})") from error
    if found != method.parameters:
        raise _unknown(method, f"it takes ({', '.join(found)}) instead of ({', '.join(method.parameters)})")
    if fields != (method.trained, method.options):
        raise _unknown(method, f"its class has the fields {fields} instead of {(method.trained, method.options)}")
    return _Replacement(owner, method.name, original, original)


def _unknown(method: _Method, why: str) -> RuntimeError:
    return RuntimeError(
        f"accelerate() does not know {method} of PEFT {peft.__version__}: {why}. It is written for PEFT "
        f"{KNOWN_RELEASES}; nothing was changed"
    )


def _replace(functions: dict[_Method, _Replacement]) -> None:
    """Replaces these methods, and gives back all others."""
    global _replaced
    if functions == _replaced:
        return
    for method, one in _replaced.items():
        if method not in functions:
            setattr(one.owner, one.name, one.original)
    for one in functions.values():
        setattr(one.owner, one.name, one.function)
    _replaced = functions
    if _C3A not in functions:
        products.clear()
    # Dynamo does not guard on the methods of a class: what it has compiled would run the old ones.
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
