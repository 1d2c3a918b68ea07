"""How a call came about: an ordinary one, or compiled, traced, faked, transformed by torch.func or in forward mode.

This module alone asks torch for it, by private names where there are no public ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

#: torch.compile or strict export is reading this very code, where tensors are symbols.
is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling

#: torch.func is transforming the call. Without its private name every call takes the slower path, which is right too.
transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)

#: A gradient comes in batches, without any transformation being active.
is_batched: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda t: True)

_PLAIN = (Tensor, torch.nn.Parameter)
_is_compiled: Callable[[], bool] = torch.compiler.is_compiling  # or exported, strictly or not
_is_jit_tracing: Callable[[], bool] = torch._C._is_tracing
_modes_of_dispatch: Callable[[], int] = torch._C._len_torch_dispatch_stack


def in_forward_mode() -> bool:
    """Whether tangents are computed along; not to be asked while compiling."""
    return forward_ad._current_level >= 0


def is_hollow(t: Tensor) -> bool:
    """Whether a tensor has a shape and a type but no values, as on the meta device and under FakeTensorMode."""
    return t.is_meta or isinstance(t, FakeTensor)


def has_values(t: Tensor) -> bool:
    """Whether a call may look at the values of a tensor: it is not faked, nor the call compiled, traced or transformed.

    What torch.jit.trace and make_fx have not seen computed they take for a constant, and a mode of dispatch wants to
    see every operator of a call: so nothing may be kept for another call either.
    """
    if _is_compiled() or transforms_active() or _is_jit_tracing() or _modes_of_dispatch():
        return False
    return type(t) in _PLAIN and not t.is_meta


def is_ordinary(t: Tensor) -> bool:
    """Whether a call may look at the values of t, and computes no tangents: then it may go ways of its own."""
    return has_values(t) and forward_ad._current_level < 0
