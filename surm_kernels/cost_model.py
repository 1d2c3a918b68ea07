"""Whether an adapted layer computes its update directly or merges it into the weight, by a model of the two costs.

A training step of y = x W0ᵀ + bias + scale x W(θ)ᵀ costs, beyond the products with W0 that both strategies have,

    direct    linear + gradients    the product with the tokens, then the gradients of x and of θ
    merged    merge + pullback      forming W0 + scale W, since θ has changed, then the gradient of θ alone

A pass over the tokens takes a call's overhead and then a time for each unit of the structure's `token_work`; merging
takes a time for each unit of its `merge_work`. The constants are measured (cost_constants.py), never when a layer is
called, so that it makes the same choice every time.

On a GPU, where all of this is bound by memory, the model counts what moves instead. For m x n weights, direct reads x,
writes the update of y and reads it again, n + 2 m values a token, and writes and reads the update of x's gradient, 2 n
more; merging reads and writes a weight.
"""

import math
from functools import lru_cache

import torch

from surm_kernels import cost_constants
from surm_kernels.cost_constants import Costs
from surm_kernels.structures import Structure

#: Another number whenever the constants may have become others.
generation = 0


def prefers_merged(
    structure: Structure,
    tokens: int,
    dtype: torch.dtype,
    *,
    parameter_gradients: bool,
    input_gradient: bool,
    threads: int | None = None,
    device_type: str = "cpu",
) -> bool:
    """Whether merging is the faster strategy of an adapted layer.

    Args:
        structure: of the update.
        tokens: rows of x.
        dtype: of x; float32, bfloat16 and, with the constants of these, float64 and float16.
        parameter_gradients: whether θ is trained and so changes in every step. Otherwise the merged weight is formed
            once, and merging always wins.
        input_gradient: whether the gradient of x is wanted as well.
        threads: of an operation, by default as many as torch uses.
        device_type: "cpu", or that of a GPU.
    """
    if not parameter_gradients:
        return True
    if device_type != "cpu":
        return tokens >= break_even_by_traffic(structure, input_gradient)
    return tokens >= break_even(structure, dtype, input_gradient, threads)


def break_even(
    structure: Structure, dtype: torch.dtype, input_gradient: bool = True, threads: int | None = None
) -> float:
    """The number of tokens from which on a training step is faster merged; infinite where it never is."""
    return _break_even(structure, dtype, input_gradient, threads or torch.get_num_threads())


@lru_cache(maxsize=4096)
def _break_even(structure: Structure, dtype: torch.dtype, input_gradient: bool, threads: int) -> float:
    return break_even_at(cost_constants.table_in_use(threads).costs(structure, dtype), structure, input_gradient)


def break_even_at(costs: Costs, structure: Structure, input_gradient: bool = True) -> float:
    """`break_even` at given constants: what merging takes more at first over what it saves on a token."""
    calls, a_unit = costs.linear_call, costs.linear
    if input_gradient:  # its price, which measuring may find to be less than nothing
        calls += max(0.0, costs.gradients_call - costs.pullback_call)
        a_unit += max(0.0, costs.gradients - costs.pullback)
    lead = costs.merge * structure.merge_work() - calls
    if lead <= 0:
        return 0.0
    a_token = a_unit * structure.token_work()
    return lead / a_token if a_token > 0 else math.inf


def break_even_by_traffic(structure: Structure, input_gradient: bool = True) -> float:
    """`break_even` on a GPU, by counting what moves through memory."""
    m, n = structure.out_features, structure.in_features
    return 2 * m * n / (n + 2 * m + 2 * n * input_gradient)


def forget() -> None:
    """Has the constants read anew, since their files have changed."""
    global generation
    generation += 1
    cost_constants.forget()
    _break_even.cache_clear()
