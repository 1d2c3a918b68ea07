"""How a call came about: an ordinary one, or compiled, traced, faked, transformed by torch.func or in forward mode.

This module alone asks torch for it, by private names where there are no public ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

#: torch.compile or strict export is reading this very code, where tensors are symbols.
is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling

#: torch.func is transforming the call. Without its private name every call takes the slower path, which is right too.
transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)

#: A gradient comes in batches, without any transformation being active.
is_batched: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda t: True)

_PLAIN = (Tensor, torch.nn.Parameter)


def in_forward_mode() -> bool:
    """Whether tangents are computed along; not to be asked while compiling."""
    return forward_ad._current_level >= 0


def has_values(*tensors: Tensor) -> bool:
    """Whether a call may look at values of tensors: none is faked, and the call not compiled, traced or transformed.

    What torch.jit.trace and make_fx have not seen computed they take for a constant, and a mode of dispatch wants to
    see every operator of a call: so nothing may be kept for another call either.
    """
    if torch.compiler.is_compiling() or transforms_active():
        return False
    if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    for t in tensors:  # noqa: SIM110 - a generator would take as long as all else here
        if type(t) not in _PLAIN or t.is_meta:
            return False
    return True


def is_ordinary(x: Tensor) -> bool:
    """Whether a call on x may look at values, and computes no tangents: then it may go ways of its own."""
    return has_values(x) and forward_ad._current_level < 0
