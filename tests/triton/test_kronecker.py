"""The Triton kernels of the Kronecker operators against the dense float64 matrix, interpreted, and compiled ahead.

The interpreter computes in bfloat16 wrongly without a word, so that type is compiled only.
"""

import pytest
import torch

from tests.test_kronecker import Shape, assert_matches, factors, tokens_and_cotangents
from tests.triton import harness

kronecker = pytest.importorskip("surm_kernels.triton.kronecker")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHAPES: list[Shape] = [(1, 1, 1, 1), (2, 3, 5, 7), (7, 1, 1, 7), (30, 17, 5, 9), (3, 20, 20, 3), (32, 24, 24, 32)]
DTYPES = (torch.float32, torch.float16)

shape_cases = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}x{}-{}x{}".format(*shape))
dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def types(tensors: str, integers: str, element: str = "*bf16") -> dict[str, str]:
    return {**dict.fromkeys(tensors.split(), element), **dict.fromkeys(integers.split(), "i32"), "scale": "fp32"}


SIZES = "tokens p q r s shape_class"
PRODUCT = (
    "x a b base y",
    f"{SIZES} x_group x_token x_left a_group a_row b_group b_row base_group base_token y_left",
)
PULLBACK = ("g x b", f"{SIZES} g_group g_token g_left x_group x_token x_left b_group b_row")
UNIT = {"x_right": 1, "b_column": 1}


def ahead(kernel: str, features: int, size: int, element: str) -> harness.Case:
    """A case of factors that are padded to `size`."""
    sizes = dict.fromkeys("PQRS", size)
    if kernel == "product":
        function, kinds = kronecker.product_kernel, types(*PRODUCT, element)
        constants = {"y_right": 1, "a_column": 1}
    else:
        function, kinds = kronecker.pullback_kernel, {**types(*PULLBACK, element), "sums": "*fp32"}
        constants = {"g_right": 1, "TOKENS_OF_A_SUM": kronecker.TOKENS_OF_A_SUM}
        del kinds["scale"]
    return harness.Case(
        f"kronecker: {kernel} of {features} features, {element[1:]}",
        function,
        kinds,
        {**UNIT, **constants, **sizes},
        only=lambda config, target: config in kronecker.fitting(kronecker.CONFIGS, {}, **sizes),
    )


AHEAD_OF_TIME = [
    ahead(kernel, features, size, element)
    for features, size, element in ((768, 32, "*bf16"), (4096, 64, "*bf16"), (768, 32, "*fp32"))
    for kernel in ("product", "pullback")
]


@dtype_cases
@shape_cases
def test_products_and_gradients_match_the_dense_matrix(shape: Shape, dtype: torch.dtype) -> None:
    a, b = factors(shape, dtype)
    for tokens in (0, 1, 35):
        assert_matches(a, b, *tokens_and_cotangents(shape, tokens, dtype), kronecker)


def test_16_bit_factors_may_be_larger() -> None:
    for shape in ((33, 5, 4, 64), (2, 64, 50, 3)):
        a, b = factors(shape, torch.float16)
        assert_matches(a, b, *tokens_and_cotangents(shape, 35, torch.float16), kronecker)


def test_both_orders_and_both_ways_of_a_pullback_are_tried() -> None:
    costs = [(q * r * (s + p), p * s * (q + r)) for p, q, r, s in SHAPES]
    assert any(first < second for first, second in costs)
    assert any(first > second for first, second in costs)


@dtype_cases
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 5).to(dtype).mT, torch.randn(1, 4, 12).to(dtype)[..., ::2].expand(2, 4, 6)
    x, g = torch.randn(34, 2, 18).to(dtype)[::2].transpose(0, 1), torch.randn(2, 17, 40).to(dtype)[..., ::2]
    base = torch.randn(20).to(dtype).expand(2, 17, 20)
    for call in (
        lambda x, a, b, g, base: (kronecker.kronecker(x, a, b, base, 0.5, False),),
        lambda x, a, b, g, base: (kronecker.kronecker(g, a, b, None, 0.5, True),),
        lambda x, a, b, g, base: kronecker.kronecker_backward(g, x, a, b, 0.5),
    ):
        for got, wanted in zip(
            call(x, a, b, g, base), call(*(t.contiguous() for t in (x, a, b, g, base))), strict=True
        ):
            assert got.is_contiguous()
            assert torch.equal(got, wanted)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_a_row_that_is_not_finite_spoils_its_own_row_and_the_gradients_of_the_factors() -> None:
    shape = (5, 3, 4, 6)
    a, b = factors(shape, torch.float16)
    x, g = tokens_and_cotangents(shape, 35, torch.float16)
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[0, 33] = bad
        others = torch.arange(35) != 33
        y = kronecker.kronecker(broken, a, b, None, 1.0, False)
        assert not y[0, 33].isfinite().any()
        assert torch.equal(y[:, others], kronecker.kronecker(x, a, b, None, 1.0, False)[:, others])
        x_gradient, *parameter_gradients = kronecker.kronecker_backward(g, broken, a, b, 1.0)
        assert x_gradient.isfinite().all()
        assert not any(gradient.isfinite().all() for gradient in parameter_gradients)


def test_what_the_kernels_do_not_serve_is_said_and_refused() -> None:
    for dtype, largest in ((torch.float16, 64), (torch.float32, 32), (torch.float64, 0)):
        for size in (1, 32, 33, 64, 65):
            a, b = factors((1, size, 2, 2), dtype)
            x, g = tokens_and_cotangents((1, size, 2, 2), 0, dtype)
            assert kronecker.serves(a, b) == (size <= largest)
            if size > largest:
                with pytest.raises(ValueError, match="float64|no size above"):
                    kronecker.kronecker(x, a, b, None, 1.0, False)
                with pytest.raises(ValueError, match="float64|no size above"):
                    kronecker.kronecker_backward(g, x, a, b, 1.0)


@harness.case_and_target(AHEAD_OF_TIME)
def test_kernels_compile_without_spills_and_fit_their_targets(case: harness.Case, target: str, compiled) -> None:
    harness.assert_sound(case, target, compiled)
