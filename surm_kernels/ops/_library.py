"""The operator library: schemas where no compiled library brings them, the reference for devices without a kernel."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from surm_kernels import _environment, _extension
from surm_kernels.gpu_rule import Problem
from surm_kernels.ops import _cuda

NAMESPACE = "surm_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(
    schema: str,
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    *,
    compiled: bool = True,
    cuda: Callable[..., Problem] | None = None,
) -> Any:
    """Completes the operator of a schema and returns it, ready to call.

    The compiled library, where there is one, has defined the schema and its CPU kernel of a `compiled` operator. On
    CUDA tensors the choice is made by what `cuda`, of the operator's signature, says of a call. The reference serves
    every device without a kernel of its own; the fake tells tracing the shape of the result.
    """
    if not (compiled and _extension.available):
        _library.define(schema)
    name = schema.partition("(")[0]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    _library.impl(name, _as_kernel(reference), "CompositeExplicitAutograd")
    if cuda is not None and _environment.read("SURM_KERNELS_BACKEND") != "reference":
        _library.impl(name, _as_kernel(_cuda.kernel(name, cuda, reference)), "CUDA")
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _as_kernel(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as an operator runs it: torch leaves autograd and autocast on below one that has no own kernel."""

    def kernel(x: Tensor, *rest: Any) -> Any:
        with torch.no_grad(), without_autocast(x):
            return reference(x, *rest)

    return kernel


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context where the products of tensors like x keep their type."""
    device = "cpu" if x.is_meta else x.device.type
    # Entering a context of autocast costs more than a small kernel.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
