"""Argument checks of the public functions: each error names the argument, what came and what is wanted.

They run on every call, of one token as well, so they read a few attributes and build a message only to raise it.
"""

import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_STRIDED = torch.strided
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def require_floating(name: str, value: Any) -> None:
    """A tensor of one of the four floating types."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {_name(value.dtype)}")


def require_strided(name: str, value: Any) -> None:
    """A floating tensor that is neither sparse nor nested nor in a layout that a library keeps to itself."""
    if not isinstance(value, Tensor) or value.dtype not in FLOATING:
        require_floating(name, value)
    if value.layout is not _STRIDED or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.").strip("_")
        raise TypeError(f"{name} must be a dense tensor, got one that is {kind}")


def require_number(name: str, value: Any) -> None:
    """A real Python number."""
    if not isinstance(value, (float, int, numbers.Real)):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")


def require_finite(name: str, value: Any) -> None:
    """A real Python number that is neither infinite nor NaN."""
    require_number(name, value)
    if not -math.inf < value < math.inf:  # torch.compile traces this, but not math.isfinite
        raise ValueError(f"{name} must be finite, got {value}")


def require_int(name: str, value: Any) -> None:
    """An int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def require_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """One of a few strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_size(name: str, value: Any) -> None:
    """A positive int."""
    require_int(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_dimensions(name: str, value: Tensor, allowed: tuple[int, ...], wanted: str) -> None:
    """One of the allowed numbers of dimensions, none of them empty; `wanted` says it, as in "(n,) or (M, K, b)"."""
    if value.dim() not in allowed or value.numel() == 0:
        raise ValueError(f"{name} must have shape {wanted} with no empty dimension, got {_shape(value)}")


def require_shape(name: str, value: Tensor, shape: tuple[int, ...], wanted: str) -> None:
    """Exactly this shape; `wanted` says in letters what it is, as in "(r, n) like G"."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {wanted}, {shape}, got {_shape(value)}")


def require_vector(name: str, value: Any, wanted: str) -> None:
    """A floating tensor of one dimension, written `wanted`, as in "(n,)"."""
    require_floating(name, value)
    require_dimensions(name, value, (1,), wanted)


def require_matrix(name: str, value: Any, wanted: str) -> None:
    """A floating tensor of two dimensions, written `wanted`, as in "(r, n)"."""
    require_floating(name, value)
    require_dimensions(name, value, (2,), wanted)


def require_features(x: Tensor, features: int, parameters: Mapping[str, Tensor]) -> None:
    """Tokens x of shape (..., features), as the parameters demand."""
    if x.dim() == 0 or x.shape[-1] != features:
        shapes = " and ".join(f"{name} of shape {_shape(parameter)}" for name, parameter in parameters.items())
        raise ValueError(f"x must have shape (..., {features}) to go with {shapes}, got {_shape(x)}")


def require_tokens(x: Tensor) -> None:
    """Tokens x of shape (..., n), where it is for x to say what n is."""
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have shape (..., n) with at least one feature, got {_shape(x)}")


def require_block_columns(x: Tensor, name: str, blocks: Tensor) -> None:
    """Tokens x of shape (..., K n) for a grid of blocks (M, K, ...)."""
    if x.shape[-1] % blocks.shape[1] != 0:
        raise ValueError(
            f"x must have shape (..., K n) with K = {blocks.shape[1]} to go with {name} of shape {_shape(blocks)}, "
            f"got {_shape(x)}"
        )


def require_diagonals(name: str, value: Tensor, columns: int) -> None:
    """At least one row: (..., m + n - 1) for n columns."""
    if value.shape[-1] < columns:
        raise ValueError(
            f"{name} must have m + n - 1 >= {columns} values in its last dimension for n = {columns} columns, "
            f"got shape {_shape(value)}"
        )


def require_pair_of_generators(G: Tensor, H: Tensor) -> None:
    """Generators G and H, both (r, n)."""
    require_matrix("G", G, "(r, n)")
    require_floating("H", H)
    require_shape("H", H, tuple(G.shape), "(r, n) like G")


def require_factors(A: Tensor, B: Tensor) -> None:
    """Factors A (r, n) and B (m, r) of a matrix of low rank."""
    require_matrix("A", A, "(r, n)")
    require_matrix("B", B, "(m, r)")
    require_shape("B", B, (B.shape[0], A.shape[0]), "(m, r) with r as in A")


def require_bases(U: Tensor, s: Tensor, V: Tensor) -> None:
    """Bases U (m, k) and V (n, k) with k values s between them."""
    require_matrix("U", U, "(m, k)")
    require_vector("s", s, "(k,)")
    require_shape("s", s, (U.shape[1],), "(k,) with k as in U")
    _require_right_basis(U, V)


def require_bases_of_bank(U: Tensor, s: Tensor, V: Tensor) -> None:
    """Bases U (m, k) and V (n, k) with k values between them for each adapter, s (adapters, k)."""
    require_matrix("U", U, "(m, k)")
    require_matrix("s", s, "(adapters, k) to go with index")
    require_shape("s", s, (s.shape[0], U.shape[1]), "(adapters, k) with k as in U")
    _require_right_basis(U, V)


def _require_right_basis(U: Tensor, V: Tensor) -> None:
    require_matrix("V", V, "(n, k)")
    require_shape("V", V, (V.shape[0], U.shape[1]), "(n, k) with k as in U")


def require_generators(G: Tensor, H: Tensor, v: Tensor, u: Tensor | None = None) -> None:
    """Generators G (r, m) and H (r, n) with nodes v (m,) of the rows, and u (n,) of the columns where there are any."""
    require_vector("v", v, "(m,)")
    require_matrix("G", G, "(r, m)")
    require_matrix("H", H, "(r, n)")
    require_shape("G", G, (G.shape[0], v.shape[0]), "(r, m) with m as in v")
    if u is None:
        require_shape("H", H, (G.shape[0], H.shape[1]), "(r, n) with r as in G")
    else:
        require_vector("u", u, "(n,)")
        require_shape("H", H, (G.shape[0], u.shape[0]), "(r, n) with r as in G and n as in u")


def require_index(x: Tensor, index: Any) -> None:
    """An adapter for every token of x (..., n), or for every row of them: integers (...) on its device."""
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a torch.Tensor, got {type(index).__name__}")
    if index.dtype not in INTEGER:
        raise TypeError(f"index must be int64, int32, int16, int8 or uint8, got {_name(index.dtype)}")
    if index.shape != x.shape[: index.dim()] or index.dim() == x.dim():
        raise ValueError(
            f"index must have the shape (...) of x without its features, {_shape(x)[:-1]}, or what that starts with, "
            f"got {_shape(index)}"
        )
    require_same_device(x, "index", index)


def require_within(index: Tensor, adapters: int) -> None:
    """No adapter that is not there; the first one gets named. For the CPU alone: it looks at the values."""
    outside = (index < 0) | (index >= adapters)
    if outside.any():
        raise ValueError(f"index must be between 0 and {adapters - 1}, got {int(index[outside][0])}")


def require_apart(v: Tensor, u: Tensor) -> None:
    """No node of v equal to one of u; the first that is gets named. For the CPU alone: it looks at the values."""
    meeting = torch.isin(v, u)
    if meeting.any():
        i = int(meeting.nonzero()[0])
        j = int((u == v[i]).nonzero()[0])
        raise ValueError(f"v and u must have no value in common, got v[{i}] = u[{j}] = {v[i].item()}")


def require_same_device(x: Tensor, name: str, value: Tensor, of: str = "x") -> None:
    """A tensor on the device of x, or of what else is called `of`."""
    if not (value.is_cpu and x.is_cpu) and value.device != x.device:  # the first is faster
        raise ValueError(f"{name} must be on the device of {of}, {x.device}, got {value.device}")


def broadcast_base(base: Tensor, shape: tuple[int, ...]) -> Tensor:
    """base in the shape of the output, expanded where it is broadcastable to it."""
    # Sizes are compared after the number of dimensions: torch.compile guards on every comparison it sees.
    if base.dim() == len(shape) and base.shape == shape:
        return base
    aligned = zip(reversed(base.shape), reversed(shape), strict=False)
    # Not `in (1, wanted)`, which torch.compile answers for symbols as for objects.
    if base.dim() > len(shape) or any(size != 1 and size != wanted for size, wanted in aligned):
        raise ValueError(f"base must be broadcastable to the output's shape {tuple(shape)}, got {_shape(base)}")
    return base.expand(shape)


def common_dtype(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """The type to compute in: promotion over all tensors, or autocast's, which leaves float64 alone as torch does."""
    dtype = x.dtype
    for other in others:
        if other is not None and other.dtype is not dtype:
            dtype = torch.promote_types(dtype, other.dtype)
    if autocasts(x) and dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return dtype


def autocasts(x: Tensor) -> bool:
    """Whether autocast has a say in products of tensors like x; torch knows none on the meta device."""
    device = "cpu" if x.is_cpu else x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
