"""The operator library: schemas where no compiled library brings them, the reference for devices without a kernel."""

from collections.abc import Callable
from typing import Any

import torch

from surm_kernels import _extension

NAMESPACE = "surm_kernels"

_schemas = None if _extension.available else torch.library.Library(NAMESPACE, "DEF")
_fallbacks = torch.library.Library(NAMESPACE, "IMPL")


def define(schema: str, fake: Callable[..., Any], reference: Callable[..., Any]) -> Any:
    """Completes the operator of a schema and returns it, ready to call.

    The compiled library, where there is one, has defined the same schema and its CPU kernel. The reference serves
    every device without a kernel of its own; the fake tells tracing the shape of the result.
    """
    if _schemas is not None:
        _schemas.define(schema)
    name = schema.partition("(")[0]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    # torch leaves autograd on below an operator that has no autograd kernel.
    _fallbacks.impl(name, torch.no_grad()(reference), "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name).default
