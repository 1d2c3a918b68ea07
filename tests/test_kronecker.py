"""The kronecker operators against the dense float64 matrix, row by row, for every shape and layout that hurts."""

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surm_kernels import _extension, ops
from surm_kernels.ops.kronecker import (
    kronecker,
    kronecker_backward,
    kronecker_pullback_left,
    kronecker_pullback_right,
)
from tests import oracle
from tests.layouts import LAYOUTS
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Shape = tuple[int, int, int, int]

SHAPES: list[Shape] = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (7, 1, 1, 7),
    (1, 16, 16, 1),
    (9, 8, 1, 5),
    (16, 16, 16, 16),
    (33, 17, 5, 9),
    (3, 64, 64, 3),
    (32, 24, 24, 32),
    (24, 32, 32, 24),
    (64, 32, 16, 48),
    (4, 4, 192, 192),
    (192, 192, 4, 4),
    (1, 1, 300, 200),
    (200, 300, 1, 1),
]
SMALL_SHAPES: list[Shape] = [(2, 3, 5, 7), (33, 17, 5, 9), (3, 64, 64, 3), (32, 24, 24, 32)]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75


def shape_cases(shapes: list[Shape]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=lambda shape: "{}x{}-{}x{}".format(*shape))


dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def factors(shape: Shape, dtype: torch.dtype = torch.float32, groups: int = 1) -> tuple[Tensor, Tensor]:
    p, q, r, s = shape
    return torch.randn(groups, p, q).to(dtype), torch.randn(groups, r, s).to(dtype)


def tokens_and_cotangents(
    shape: Shape, tokens: int, dtype: torch.dtype = torch.float32, groups: int = 1
) -> tuple[Tensor, Tensor]:
    p, q, r, s = shape
    return torch.randn(groups, tokens, q * s).to(dtype), torch.randn(groups, tokens, p * r).to(dtype)


def tokens_of(shape: Shape) -> tuple[int, ...]:
    """The token counts tried at a shape: all of them where that is cheap."""
    p, q, r, s = shape
    if p * q * r * s <= 20_000:
        return (0, 1, 2, 15, 16, 17, 33, 1000)
    return (0, 1, 17, 100)


def matrices(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([oracle.kronecker(*pair) for pair in zip(a, b, strict=True)])


@dtype_cases
@shape_cases(SHAPES)
def test_product_and_gradients_match_the_dense_matrix(shape: Shape, dtype: torch.dtype) -> None:
    a, b = factors(shape, dtype)
    for tokens in tokens_of(shape):
        assert_matches(a, b, *tokens_and_cotangents(shape, tokens, dtype))


@dtype_cases
@shape_cases(SMALL_SHAPES)
def test_groups_are_independent_problems(shape: Shape, dtype: torch.dtype) -> None:
    a, b = factors(shape, dtype, groups=3)
    for tokens in (0, 1, 33):
        assert_matches(a, b, *tokens_and_cotangents(shape, tokens, dtype, groups=3))


def assert_matches(a: Tensor, b: Tensor, x: Tensor, g: Tensor, operators: ModuleType = ops.kronecker) -> None:
    """All products and gradients at a and b; g has the output's shape."""
    dense = matrices(a, b)
    x64, g64 = x.double(), g.double()
    y, x_gradient = x64 @ dense.mT, SCALE * g64 @ dense
    (p, q), (r, s), tokens = a.shape[1:], b.shape[1:], max(x.shape[1], 1)
    w_gradient = (SCALE * g64.mT @ x64).unflatten(1, (p, r)).unflatten(3, (q, s))
    a_gradient = torch.einsum("gprqs,grs->gpq", w_gradient, b.double())
    b_gradient = torch.einsum("gprqs,gpq->grs", w_gradient, a.double())
    norm_x, norm_g, norm_a, norm_b = (t.double().norm().item() for t in (x, g, a, b))
    size_y, size_x = norm_x * norm_a * norm_b / (q * s) ** 0.5, SCALE * norm_g * norm_a * norm_b / (p * r) ** 0.5
    size_a = SCALE * norm_g * norm_x * norm_b / (tokens * r * s) ** 0.5
    size_b = SCALE * norm_g * norm_x * norm_a / (tokens * p * q) ** 0.5

    oracle.assert_close(operators.kronecker(x, a, b, None, 1.0, False), y, "y", size_y)
    with_base = operators.kronecker(x, a, b, g, SCALE, False)
    oracle.assert_close(with_base, g64 + SCALE * y, "y with base", SCALE * size_y)
    oracle.assert_close(operators.kronecker(g, a, b, None, SCALE, True), x_gradient, "transposed y", size_x)
    with_base = operators.kronecker(g, a, b, x, SCALE, True)
    oracle.assert_close(with_base, x64 + x_gradient, "transposed y with base", size_x)
    oracle.assert_close(operators.kronecker_pullback_left(g, x, b, SCALE), a_gradient, "pullback to a", size_a)
    oracle.assert_close(operators.kronecker_pullback_right(g, x, a, SCALE), b_gradient, "pullback to b", size_b)
    got_x, got_a, got_b = operators.kronecker_backward(g, x, a, b, SCALE)
    oracle.assert_close(got_x, x_gradient, "gradient of x", size_x)
    oracle.assert_close(got_a, a_gradient, "gradient of a", size_a)
    oracle.assert_close(got_b, b_gradient, "gradient of b", size_b)


def test_the_product_is_that_of_torch_kron() -> None:
    a, b = factors((3, 4, 5, 2), torch.float64)
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    oracle.assert_close(kronecker(x, a, b, None, 1.0, False)[0], x[0] @ torch.kron(a[0], b[0]).T)


def test_more_terms_than_are_summed_at_once_are_all_in_the_product() -> None:
    for shape in ((1, 1, 2, 900), (2, 900, 1, 1), (2, 500, 500, 2)):
        a, b = factors(shape)
        assert_matches(a, b, *tokens_and_cotangents(shape, 3))


@given(
    shape=st.tuples(*[st.integers(1, 20)] * 4),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 40),
    scale=st.floats(-4, 4, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_product_transpose_and_pullbacks_are_adjoint_to_each_other(shape, groups, tokens, scale, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q, r, s = shape
    a, b, x, g = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((groups, p, q), (groups, r, s), (groups, tokens, q * s), (groups, tokens, p * r))
    )
    product = (g * kronecker(x, a, b, None, scale, False)).sum()
    allowed = 1e-14 * abs(scale) * (g.norm() * x.norm() * a.norm() * b.norm()).item()
    assert abs(product - (x * kronecker(g, a, b, None, scale, True)).sum()) <= allowed
    assert abs(product - (a * kronecker_pullback_left(g, x, b, scale)).sum()) <= allowed
    assert abs(product - (b * kronecker_pullback_right(g, x, a, scale)).sum()) <= allowed
    for gradient, variable in zip(kronecker_backward(g, x, a, b, scale), (x, a, b), strict=True):
        assert abs(product - (variable * gradient).sum()) <= allowed


@cases("layout, dtype, tokens", in_turns([*LAYOUTS], DTYPES, (1, 7, 40)))
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(
    layout: str, tokens: int, dtype: torch.dtype
) -> None:
    p, q, r, s = 4, 6, 5, 10
    x, g, base = (LAYOUTS[layout](tokens, n, dtype) for n in (q * s, p * r, p * r))
    a, b = torch.randn(2, q, p).to(dtype).mT, torch.randn(1, r, 2 * s).to(dtype)[..., ::2].expand(2, r, s)
    plain_x, plain_g, plain_base, plain_a, plain_b = (
        t.clone(memory_format=torch.contiguous_format) for t in (x, g, base, a, b)
    )
    got = [
        kronecker(x, a, b, base, SCALE, False),
        kronecker(g, a, b, None, SCALE, True),
        kronecker_pullback_left(g, x, b, SCALE),
        kronecker_pullback_right(g, x, a, SCALE),
        *kronecker_backward(g, x, a, b, SCALE),
    ]
    wanted = [
        kronecker(plain_x, plain_a, plain_b, plain_base, SCALE, False),
        kronecker(plain_g, plain_a, plain_b, None, SCALE, True),
        kronecker_pullback_left(plain_g, plain_x, plain_b, SCALE),
        kronecker_pullback_right(plain_g, plain_x, plain_a, SCALE),
        *kronecker_backward(plain_g, plain_x, plain_a, plain_b, SCALE),
    ]
    assert all(t.is_contiguous() for t in got)
    assert all(map(torch.equal, got, wanted))


def test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input() -> None:
    x, base, one, identity = torch.zeros(1, 3, 8), torch.randn(1, 3, 8), torch.ones(1, 1, 1), torch.eye(8)[None]
    outputs = [
        kronecker(base, one, identity, None, 1.0, False),
        kronecker(x, one, identity, base, 1.0, False),
        kronecker_pullback_left(one, one, one, 1.0),
        kronecker_pullback_right(one, one, one, 1.0),
        *kronecker_backward(base, base, one, identity, 1.0),
    ]
    assert torch.equal(outputs[0], base)
    inputs = {t.untyped_storage().data_ptr() for t in (x, base, one, identity)}
    assert all(t.untyped_storage().data_ptr() not in inputs for t in outputs)
    assert all(t.is_contiguous() for t in outputs)


@shape_cases(SMALL_SHAPES)
@pytest.mark.parametrize("tokens", [2, 3, 16, 33])
def test_each_row_is_as_accurate_as_its_own_size_allows(tokens: int, shape: Shape) -> None:
    a, b = factors(shape)
    dense = matrices(a, b)
    magnitude = 10 ** torch.linspace(-4, 4, tokens)[torch.randperm(tokens)]
    alternating = torch.where(torch.arange(tokens) % 2 == 0, 1.0, 1e4)
    for scales in (magnitude, alternating, alternating.flip(0)):
        x, g = (t * scales[:, None] for t in tokens_and_cotangents(shape, tokens))
        oracle.assert_rows_close(kronecker(x, a, b, None, 1.0, False), x.double() @ dense.mT, "y")
        oracle.assert_rows_close(kronecker_backward(g, x, a, b, 1.0)[0], g.double() @ dense, "gradient of x")


@pytest.mark.skipif(not _extension.available, reason="a matrix product of torch rounds by the number of its rows")
@dtype_cases
@shape_cases(SHAPES)
def test_a_token_gets_the_same_result_alone_and_among_others(shape: Shape, dtype: torch.dtype) -> None:
    a, b = factors(shape, dtype)
    x, g = tokens_and_cotangents(shape, 19, dtype)
    y, x_gradient = kronecker(x, a, b, g, SCALE, False), kronecker_backward(g, x, a, b, SCALE)[0]
    for token in (0, 7, 18):
        only = slice(token, token + 1)
        assert torch.equal(kronecker(x[:, only], a, b, g[:, only], SCALE, False), y[:, only])
        assert torch.equal(kronecker_backward(g[:, only], x[:, only], a, b, SCALE)[0], x_gradient[:, only])


@shape_cases(SMALL_SHAPES)
@pytest.mark.parametrize("tokens", [2, 3, 16, 33])
def test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens: int, shape: Shape) -> None:
    a, b = factors(shape)
    x, g = (t * 1e4 for t in tokens_and_cotangents(shape, tokens))
    x[:, ::2] = g[:, ::2] = 0
    for result in (kronecker(x, a, b, None, 1.0, False), kronecker_backward(g, x, a, b, 1.0)[0]):
        assert (result[:, ::2] == 0).all()
        assert (result[:, 1::2] != 0).any(-1).all()
    for gradient in kronecker_backward(g, torch.zeros_like(x), a, b, 1.0)[1:]:
        assert (gradient == 0).all()
    assert (kronecker_pullback_left(torch.zeros_like(g), x, b, 1.0) == 0).all()
    assert (kronecker_pullback_right(torch.zeros_like(g), x, a, 1.0) == 0).all()


@cases("shape, dtype, bad", in_turns(SMALL_SHAPES, DTYPES, (float("nan"), float("inf"), float("-inf"))))
def test_a_row_that_is_not_finite_gives_no_finite_value_in_that_row_and_touches_no_other(
    shape: Shape, bad: float, dtype: torch.dtype
) -> None:
    a, b = factors(shape, dtype)
    for tokens in (1, 2, 5, 33):
        x, g = tokens_and_cotangents(shape, tokens, dtype)
        row = tokens // 2
        others = torch.arange(tokens) != row
        broken_x, broken_g = x.clone(), g.clone()
        broken_x[:, row, -1], broken_g[:, row, 3] = bad, bad

        y = kronecker(broken_x, a, b, None, 1.0, False)
        assert not y[:, row].isfinite().any()
        assert torch.equal(y[:, others], kronecker(x, a, b, None, 1.0, False)[:, others])
        x_gradient, a_gradient, b_gradient = kronecker_backward(broken_g, x, a, b, 1.0)
        assert not x_gradient[:, row].isfinite().any()
        assert torch.equal(x_gradient[:, others], kronecker_backward(g, x, a, b, 1.0)[0][:, others])
        assert not a_gradient.isfinite().all()
        assert not b_gradient.isfinite().all()
        x_gradient, a_gradient, b_gradient = kronecker_backward(g, broken_x, a, b, 1.0)
        assert x_gradient.isfinite().all()
        assert not a_gradient.isfinite().all()
        assert not b_gradient.isfinite().all()


THREADED: list[Shape] = [*SMALL_SHAPES, (192, 192, 4, 4)]


@cases("shape, tokens, dtype", in_turns(THREADED, (7, 300, 1000), (torch.float32, torch.bfloat16)))
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_every_run(
    shape: Shape, tokens: int, dtype: torch.dtype, threads
) -> None:
    a, b = factors(shape, dtype, groups=2)
    x, g = tokens_and_cotangents(shape, tokens, dtype, groups=2)

    def everything() -> list[Tensor]:
        return [
            kronecker(x, a, b, g, SCALE, False),
            kronecker(g, a, b, None, SCALE, True),
            kronecker_pullback_left(g, x, b, SCALE),
            kronecker_pullback_right(g, x, a, SCALE),
            *kronecker_backward(g, x, a, b, SCALE),
        ]

    threads(1)
    wanted = everything()
    assert all(map(torch.equal, everything(), wanted))
    # torch's matrix products round by how threads share the work, so the reference repeats itself for one number only.
    for count in (2, 3, 1) if _extension.available else (1,):
        threads(count)
        assert all(map(torch.equal, everything(), wanted))
