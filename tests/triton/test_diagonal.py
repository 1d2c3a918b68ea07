"""The Triton kernels of the diagonal operators against the dense float64 matrix, interpreted, and compiled ahead.

The interpreter computes in bfloat16 wrongly without a word, so that type is compiled only.
"""

from typing import Any

import pytest
import torch

from tests.test_diagonal import SCALE, Shape, assert_matches, factors, tokens_and_cotangents
from tests.triton import harness

diagonal = pytest.importorskip("surm_kernels.triton.diagonal")
sums = pytest.importorskip("surm_kernels.triton._sums")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHAPES: list[Shape] = [(1, 1, 1), (5, 3, 2), (33, 97, 12), (64, 48, 64), (130, 17, 70)]
DTYPES = (torch.float32, torch.float16)

shape_cases = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}x{}-{}".format(*shape))
dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

PRODUCT_TYPES = {
    **dict.fromkeys(("x", "matrix", "y"), "*bf16"),
    "scale": "fp32",
    **dict.fromkeys(("tokens", "inputs", "outputs", "adapters", "x_group", "x_token", "matrix_group"), "i32"),
    **dict.fromkeys(("base_group", "base_token", "shape_class"), "i32"),
}
BY_VALUES = {**PRODUCT_TYPES, "factors": "*bf16", "adapter": "none", "base": "none", "matrix_input": "i32"}
BY_BASIS = {**PRODUCT_TYPES, "factors": "none", "adapter": "none", "base": "*bf16", "matrix_output": "i32"}
DUAL_TYPES = {
    **dict.fromkeys(("g", "x", "u", "v"), "*bf16"),
    "sums": "*fp32",
    **dict.fromkeys(("tokens", "outputs", "inputs", "rank", "g_group", "g_token", "x_group", "x_token"), "i32"),
    **dict.fromkeys(("u_group", "u_row", "v_group", "v_row", "shape_class"), "i32"),
}
ROW_MAJOR = {"u_column": 1, "v_column": 1, "LONGEST_SUM": 1024}


def in_float32(types: dict[str, str]) -> dict[str, str]:
    return {name: kind.replace("bf16", "fp32") for name, kind in types.items()}


def for_float32(config: Any, target: str) -> bool:
    return diagonal.for_float32(config)


def for_16_bits(config: Any, target: str) -> bool:
    return not diagonal.for_float32(config) and not (target == "sm_80" and diagonal.is_large(config))


# Sizes that are odd keep loads of single values, which any matrix may need.
ODD = ("inputs", "outputs", "x_token", "x_group", "matrix_group", "matrix_input", "shape_class")
AHEAD_OF_TIME = [
    harness.Case(
        "diagonal: values",
        diagonal.product_kernel,
        BY_VALUES,
        {"matrix_output": 1, "LONGEST_SUM": 1024},
        (),
        for_16_bits,
    ),
    harness.Case(
        "diagonal: basis",
        diagonal.product_kernel,
        BY_BASIS,
        {"matrix_input": 1, "LONGEST_SUM": 1024},
        (),
        for_16_bits,
    ),
    harness.Case(
        "diagonal: float32",
        diagonal.product_kernel,
        in_float32(BY_VALUES),
        {"matrix_output": 1, "LONGEST_SUM": 1024},
        ODD,
        for_float32,
    ),
    harness.Case(
        "diagonal: pullback",
        diagonal.dual_kernel,
        {**DUAL_TYPES, "s": "none", "scaled": "none"},
        {**ROW_MAJOR, "BLOCK_TOKENS": 128},
        (),
        for_16_bits,
    ),
    harness.Case(
        "diagonal: backward",
        diagonal.dual_kernel,
        {**DUAL_TYPES, "s": "*bf16", "scaled": "*bf16"},
        {**ROW_MAJOR, "BLOCK_TOKENS": 128},
        (),
        for_16_bits,
    ),
    harness.Case(
        "diagonal: backward in float32",
        diagonal.dual_kernel,
        in_float32({**DUAL_TYPES, "s": "*bf16", "scaled": "*bf16"}),
        {**ROW_MAJOR, "BLOCK_TOKENS": 64},
        (),
        for_float32,
    ),
    harness.Case(
        "sums over tokens",
        sums.sum_kernel,
        {"parts": "*fp32", "result": "*bf16", "scale": "fp32", "count": "i32", "values": "i32"},
        {"PARTS": sums.PARTS_AT_ONCE, "VALUES": sums.VALUES_AT_ONCE},
        ("count",),
    ),
]


@dtype_cases
@shape_cases
def test_product_and_gradients_match_the_dense_matrix(shape: Shape, dtype: torch.dtype) -> None:
    for groups, tokens in ((1, 0), (1, 1), (1, 17), (2, 33), (1, 130)):
        x, g = tokens_and_cotangents(shape, tokens, dtype, groups)
        assert_matches(factors(shape, dtype, groups), x, g, diagonal)


@dtype_cases
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(dtype: torch.dtype) -> None:
    u, s, v = (t.to(dtype) for t in (torch.randn(2, 9, 20).mT, torch.randn(2, 18)[:, ::2], torch.randn(2, 17, 18)))
    inputs = [torch.randn(34, 2, 17).to(dtype)[::2].transpose(0, 1), u, s, v[..., ::2]]
    g, base = torch.randn(2, 17, 40).to(dtype)[..., ::2], torch.randn(20).to(dtype).expand(2, 17, 20)
    for call in (
        lambda x, u, s, v, g, base: diagonal.diagonal(x, u, s, v, base, SCALE),
        lambda x, u, s, v, g, base: diagonal.diagonal_pullback(g, x, u, v, SCALE),
        lambda x, u, s, v, g, base: torch.cat([t.flatten() for t in diagonal.diagonal_backward(g, x, u, s, v, SCALE)]),
    ):
        got = call(*inputs, g, base)
        assert got.is_contiguous()
        assert torch.equal(got, call(*(t.contiguous() for t in (*inputs, g, base))))


def test_a_row_that_is_not_finite_spoils_its_own_row_and_the_whole_gradient_of_the_values() -> None:
    shape = (33, 40, 20)
    u, s, v = factors(shape)
    x, g = tokens_and_cotangents(shape, 130)
    broken = x.clone()
    broken[0, 66, 3] = float("nan")
    others = torch.arange(130) != 66
    y = diagonal.diagonal(broken, u, s, v, g, SCALE)
    assert y[0, 66].isnan().all()
    assert torch.equal(y[:, others], diagonal.diagonal(x, u, s, v, g, SCALE)[:, others])
    x_gradient, s_gradient = diagonal.diagonal_backward(g, broken, u, s, v, SCALE)
    assert x_gradient.isfinite().all()
    assert s_gradient.isnan().all()


def test_float64_is_refused() -> None:
    u, s, v = factors((3, 4, 2), torch.float64)
    x, g = tokens_and_cotangents((3, 4, 2), 5, torch.float64)
    for call in (
        lambda: diagonal.diagonal(x, u, s, v, None, 1.0),
        lambda: diagonal.diagonal_pullback(g, x, u, v, 1.0),
        lambda: diagonal.diagonal_backward(g, x, u, s, v, 1.0),
    ):
        with pytest.raises(ValueError, match="float64"):
            call()


@harness.case_and_target(AHEAD_OF_TIME)
def test_kernels_compile_without_spills_and_fit_their_targets(case: harness.Case, target: str, compiled) -> None:
    harness.assert_sound(case, target, compiled)
