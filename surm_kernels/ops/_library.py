"""The operator library: every schema, the reference for devices without a kernel, and the choice on CUDA tensors.

A schema stands here alone: the compiled library brings kernels for operators of the same name, not schemas.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from surm_kernels import _environment, gpu_rule
from surm_kernels._namespace import CUDA_NAMESPACE, NAMESPACE
from surm_kernels.gpu_rule import Problem
from surm_kernels.ops import _cuda

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_cuda_library = torch.library.Library(CUDA_NAMESPACE, "FRAGMENT")

_UNCHANGED: AbstractContextManager[object] = nullcontext()


def define(
    schema: str,
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    *,
    cuda: Callable[..., Problem] | None = None,
) -> Any:
    """Defines the operator of a schema and returns it, ready to call.

    The compiled library, where there is one, has the CPU kernels. On CUDA tensors the choice is made by what `cuda`, of
    the operator's signature, says of a call; an operator that CUDA C++ has a kernel for is known by the same schema in
    its namespace. The reference serves every device without a kernel of its own; the fake tells tracing the shape of
    the result.
    """
    _library.define(schema)
    name = schema.partition("(")[0]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    _library.impl(name, _as_kernel(reference), "CompositeExplicitAutograd")
    if name in gpu_rule.CUDA_OPERATORS:
        _cuda_library.define(schema)
    if cuda is not None and _environment.read("SURM_KERNELS_BACKEND") != "reference":
        _library.impl(name, _as_kernel(_cuda.kernel(name, cuda, reference)), "CUDA")
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _as_kernel(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as an operator runs it: torch leaves autograd and autocast on below one that has no own kernel."""

    def kernel(x: Tensor, *rest: Any) -> Any:
        with _without_gradients(), without_autocast(x):
            return reference(x, *rest)

    return kernel


# Entering a context of torch's costs more than a small kernel, so there is none where it would change nothing.


def _without_gradients() -> AbstractContextManager[object]:
    return torch.no_grad() if torch.is_grad_enabled() else _UNCHANGED


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context where the products of tensors like x keep their type."""
    device = "cpu" if x.is_cpu or x.is_meta else x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _UNCHANGED
