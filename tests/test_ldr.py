"""The operators of low displacement rank against the dense float64 matrix, for every size and layout that hurts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surm_kernels import _extension
from surm_kernels.ops.ldr import ldr, ldr_backward, ldr_pullback_left, ldr_pullback_right
from tests import oracle
from tests.layouts import LAYOUTS
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024)
LARGE_SIZES = (1536, 3072, 4096, 4608, 11008, 14336)
# The size of the square matrix, and how many outputs and inputs of it take part.
PARTS = ((5, 5, 3), (5, 3, 5), (7, 1, 7), (7, 7, 1), (97, 60, 41), (192, 64, 192), (192, 192, 64), (768, 97, 200))
RANKS = (1, 2, 4, 5)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75
BOTH = (False, True)  # reflected or not

reflected_cases = pytest.mark.parametrize("reflected", [False, True], ids=["toeplitz-like", "reflected"])


def times(rows: Tensor, v: Tensor, f: float) -> Tensor:
    """Every row times the transpose of the f-circulant matrix of v, in float64."""
    if len(v) <= 1024:
        return rows.double() @ oracle.f_circulant(v, f).T
    products = np.stack([np.convolve(v.double().numpy(), row) for row in rows.double().numpy()])
    result = products[:, : len(v)]
    result[:, :-1] += f * products[:, len(v) :]  # what leaves at the bottom comes in at the top, times f
    return torch.from_numpy(result)


def transpose(v: Tensor, f: float) -> Tensor:
    """The first column of the transpose of the f-circulant matrix of v, for f = 1 or -1."""
    return torch.cat([v[:1], f * v[1:].flip(0)])


def padded(rows: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(rows.double(), (0, size - rows.shape[-1]))


def exact_results(g: Tensor, x: Tensor, left: Tensor, right: Tensor, reflected: bool) -> tuple[Tensor, ...]:
    """The product with scale 1 and its gradients with respect to x, left and right, for one group.

    W x is the sum over l of Z_1(left[l]) u[l] with u[l] = Z_-1(right[l]) J x, without J unless reflected. The gradient
    of left[l] is that of <g, Z_1(left[l]) u[l]>, the one of right[l] that of <w[l], Z_-1(right[l]) J x> for
    w[l] = Z_1(left[l])^T g.
    """
    size = left.shape[1]
    wide_g, wide_x = padded(g, size), padded(x, size)
    wide_x = wide_x.flip(-1) if reflected else wide_x
    u = [times(wide_x, h, -1) for h in right]
    w = [times(wide_g, transpose(h, 1), 1) for h in left]
    y = sum(times(rows, h, 1) for rows, h in zip(u, left, strict=True))[:, : g.shape[-1]]
    x_gradient = sum(times(rows, transpose(h, -1), -1) for rows, h in zip(w, right, strict=True))
    x_gradient = (x_gradient.flip(-1) if reflected else x_gradient)[:, : x.shape[-1]]
    left_gradient = torch.stack([sums(wide_g, rows, 1) for rows in u])
    right_gradient = torch.stack([sums(rows, wide_x, -1) for rows in w])
    return y, x_gradient, left_gradient, right_gradient


def sums(g: Tensor, x: Tensor, f: float) -> Tensor:
    """The gradient of <g, x Z_f(v)^T> with respect to v; of large matrices the 64 entries of `sample_of`."""
    size = g.shape[1]
    if size <= 1024:
        return oracle.diagonal_sums(g.T @ x, size, f)[0, 0]
    return oracle.some_diagonal_sums(g, x, f, sample_of(size))


def sample_of(size: int) -> Tensor:
    """Some entries of a gradient, all of them where that is cheap."""
    return torch.arange(size) if size <= 1024 else (torch.arange(64) * 9973 + 5) % size


def assert_matches(left: Tensor, right: Tensor, outputs: int, inputs: int, tokens: int, reflected: bool) -> None:
    """All products and gradients at left and right, (G, r, n), for one number of tokens."""
    groups, rank, size = left.shape
    x = torch.randn(groups, tokens, inputs).to(left.dtype)
    g, base = (torch.randn(groups, tokens, outputs).to(left.dtype) for _ in range(2))
    by_group = [exact_results(g[group], x[group], left[group], right[group], reflected) for group in range(groups)]
    y, x_gradient, left_gradient, right_gradient = map(torch.stack, zip(*by_group, strict=True))
    norm_x, norm_g, norm_left, norm_right = (t.double().norm().item() for t in (x, g, left, right))
    size_y = norm_x * norm_left * norm_right * (outputs / (rank * size)) ** 0.5 / groups
    size_x = SCALE * norm_g * norm_left * norm_right * (inputs / (rank * size)) ** 0.5 / groups
    size_left, size_right = (
        SCALE * norm * norm_g * norm_x / groups / max(tokens, 1) ** 0.5 for norm in (norm_right, norm_left)
    )
    sample = sample_of(size)
    share = (len(sample) / size) ** 0.5

    def assert_close(got: Tensor, exact: Tensor, what: str, size: float) -> None:
        oracle.assert_close(got, exact, f"{what} of {tokens} tokens", size)

    product = ldr(x, left, right, None, outputs, 1.0, False, reflected)
    assert_close(product, y, "y", size_y)
    with_base = ldr(x, left, right, base, outputs, SCALE, False, reflected)
    assert_close(with_base, base.double() + SCALE * y, "y with base", SCALE * size_y)
    transposed = ldr(g, left, right, x, inputs, SCALE, True, reflected)
    assert_close(transposed, x.double() + SCALE * x_gradient, "transposed y", size_x)
    pullback = ldr_pullback_left(g, x, right, SCALE, reflected)
    assert_close(pullback[..., sample], SCALE * left_gradient, "pullback to left", share * size_left)
    pullback = ldr_pullback_right(g, x, left, SCALE, reflected)
    assert_close(pullback[..., sample], SCALE * right_gradient, "pullback to right", share * size_right)
    got_x, got_left, got_right = ldr_backward(g, x, left, right, SCALE, reflected)
    assert_close(got_x, SCALE * x_gradient, "gradient of x", size_x)
    assert_close(got_left[..., sample], SCALE * left_gradient, "gradient of left", share * size_left)
    assert_close(got_right[..., sample], SCALE * right_gradient, "gradient of right", share * size_right)


def generators(rank: int, size: int, dtype: torch.dtype, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Left and right, (G, r, n), for answers of about the size of x."""
    left, right = torch.randn(groups, rank, size), torch.randn(groups, rank, size)
    return (left / size).to(dtype), right.to(dtype)


def tokens_of(size: int) -> tuple[int, ...]:
    """The token counts tried at a size: all of them where that is cheap."""
    if size <= 64:
        return (0, 1, 2, 15, 16, 17, 33, 1000)
    return (0, 1, 16, 33) if size <= 1024 else (17,) if size <= 4096 else (3,)


@cases("size, dtype, reflected", in_turns(SIZES, DTYPES, BOTH))
def test_product_and_gradients_match_the_index_formula(size: int, dtype: torch.dtype, reflected: bool) -> None:
    left, right = generators(2, size, dtype)
    for tokens in tokens_of(size):
        assert_matches(left, right, size, size, tokens, reflected)


@cases("size, reflected, dtype", in_turns(LARGE_SIZES, BOTH, DTYPES))
def test_large_products_and_sampled_gradients_match_the_index_formula(
    size: int, dtype: torch.dtype, reflected: bool
) -> None:
    left, right = generators(1 if size > 4096 else 2, size, dtype)
    for tokens in tokens_of(size):
        assert_matches(left, right, size, size, tokens, reflected)


@cases("part, dtype, reflected", in_turns(PARTS, DTYPES, BOTH))
def test_top_left_parts_of_every_rank_match_the_index_formula_in_every_group(
    part: tuple[int, int, int], dtype: torch.dtype, reflected: bool
) -> None:
    size, outputs, inputs = part
    rank = RANKS[(PARTS.index(part) + DTYPES.index(dtype)) % len(RANKS)]  # each meets every part and every type
    left, right = generators(rank, size, dtype, groups=2)
    for tokens in (0, 1, 5, 33):
        assert_matches(left, right, outputs, inputs, tokens, reflected)


@reflected_cases
@pytest.mark.parametrize("size", [1, 2, 7, 12, 64])
def test_product_with_the_identity_is_the_dense_matrix(size: int, reflected: bool) -> None:
    left, right = generators(3, size, torch.float64)
    dense = oracle.ldr(left[0], right[0], reflected)
    identity = torch.eye(size, dtype=torch.float64)[None]
    oracle.assert_close(ldr(identity, left, right, None, size, 1.0, True, reflected)[0], dense)
    oracle.assert_close(ldr(identity, left, right, None, size, 1.0, False, reflected)[0], dense.T)


@given(
    size=st.integers(1, 40),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    rank=st.integers(1, 5),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 40),
    reflected=st.booleans(),
    scale=st.floats(-4, 4, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_product_transpose_and_pullbacks_are_adjoint_to_each_other(
    size, part, rank, groups, tokens, reflected, scale, seed
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = (max(1, round(share * size)) for share in part)
    left, right, x, g = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((groups, rank, size), (groups, rank, size), (groups, tokens, inputs), (groups, tokens, outputs))
    )
    product = (g * ldr(x, left, right, None, outputs, scale, False, reflected)).sum()
    bound = 1e-14 * abs(scale) * (g.norm() * x.norm() * left.norm() * right.norm()).item() * size**0.5
    assert abs(product - (x * ldr(g, left, right, None, inputs, scale, True, reflected)).sum()) <= bound
    assert abs(product - (left * ldr_pullback_left(g, x, right, scale, reflected)).sum()) <= bound
    assert abs(product - (right * ldr_pullback_right(g, x, left, scale, reflected)).sum()) <= bound


def everything(x: Tensor, g: Tensor, left: Tensor, right: Tensor, base: Tensor | None, reflected: bool) -> list[Tensor]:
    return [
        ldr(x, left, right, base, g.shape[-1], SCALE, False, reflected),
        ldr(g, left, right, None, x.shape[-1], SCALE, True, reflected),
        ldr_pullback_left(g, x, right, SCALE, reflected),
        ldr_pullback_right(g, x, left, SCALE, reflected),
        *ldr_backward(g, x, left, right, SCALE, reflected),
    ]


@cases("dtype, tokens, reflected", in_turns(DTYPES, (1, 7, 40), BOTH))
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(
    tokens: int, dtype: torch.dtype, reflected: bool
) -> None:
    left = torch.randn(2, 20, 3).to(dtype).mT
    right = torch.randn(1, 3, 40).to(dtype)[..., ::2].expand(2, 3, 20)
    for make in LAYOUTS.values():
        tensors = [*(make(tokens, n, dtype) for n in (13, 20)), left, right, make(tokens, 20, dtype)]
        plain = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
        got = everything(*tensors, reflected)
        assert all(t.is_contiguous() for t in got)
        assert all(map(torch.equal, got, everything(*plain, reflected)))


def test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input() -> None:
    x, base = torch.zeros(1, 3, 8), torch.randn(1, 3, 8)
    left, right = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    left[..., 0] = right[..., 0] = 1
    inputs = {t.untyped_storage().data_ptr() for t in (x, base, left, right)}
    outputs = everything(x, base, left, right, base, False)
    assert all(t.untyped_storage().data_ptr() not in inputs for t in outputs)
    assert all(t.is_contiguous() for t in outputs)


row_cases = cases("size, tokens, reflected", in_turns((64, 97, 768, 1000), (2, 3, 16, 33), BOTH))


@row_cases
def test_each_row_is_as_accurate_as_its_own_size_allows(tokens: int, size: int, reflected: bool) -> None:
    left, right = generators(2, size, torch.float32)
    magnitude = 10 ** torch.linspace(-4, 4, tokens)[torch.randperm(tokens)]
    alternating = torch.where(torch.arange(tokens) % 2 == 0, 1.0, 1e4)
    for scales in (magnitude, alternating, alternating.flip(0)):
        x = torch.randn(1, tokens, size) * scales[:, None]
        y, x_gradient, _, _ = exact_results(x[0], x[0], left[0], right[0], reflected)
        oracle.assert_rows_close(ldr(x, left, right, None, size, 1.0, False, reflected), y, "y")
        oracle.assert_rows_close(ldr_backward(x, x, left, right, 1.0, reflected)[0], x_gradient, "gradient of x")


@reflected_cases
def test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy(reflected: bool) -> None:
    left, right = generators(2, 768, torch.float32)
    x = torch.randn(1, 8, 768) * 2.0 ** torch.tensor([120, -100, 0, 118, -90, 60, -60, 100])[:, None]
    y = exact_results(x[0], x[0], left[0], right[0], reflected)[0]
    oracle.assert_rows_close(ldr(x, left, right, None, 768, 1.0, False, reflected), y)


@row_cases
def test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens: int, size: int, reflected: bool) -> None:
    left, right = generators(2, size, torch.float32)
    x = torch.randn(1, tokens, size) * 1e4
    x[:, ::2] = 0
    y = ldr(x, left, right, None, size, 1.0, False, reflected)
    assert (y[:, ::2] == 0).all()
    assert (y[:, 1::2] != 0).any(-1).all()
    x_gradient, *gradients = ldr_backward(x, torch.zeros_like(x), left, right, 1.0, reflected)
    assert (x_gradient[:, ::2] == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)
    assert (ldr_pullback_left(torch.zeros_like(x), x, right, 1.0, reflected) == 0).all()
    assert (ldr_pullback_right(torch.zeros_like(x), x, left, 1.0, reflected) == 0).all()


BROKEN = (float("nan"), float("inf"), float("-inf"))


@cases("dtype, bad, part, reflected", in_turns(DTYPES, BROKEN, ((97, 97, 97), (768, 700, 300)), BOTH))
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(
    part: tuple[int, int, int], bad: float, dtype: torch.dtype, reflected: bool
) -> None:
    size, outputs, inputs = part
    left, right = generators(2, size, dtype)
    for tokens in (1, 2, 5, 33):
        x, g = torch.randn(1, tokens, inputs).to(dtype), torch.randn(1, tokens, outputs).to(dtype)
        row = tokens // 2
        others = torch.arange(tokens) != row
        broken_x, broken_g = x.clone(), g.clone()
        broken_x[:, row, -1], broken_g[:, row, 3] = bad, bad
        x[:, row], g[:, row] = 0, 0

        y = ldr(broken_x, left, right, None, outputs, 1.0, False, reflected)
        assert y[:, row].isnan().all()
        assert torch.equal(y[:, others], ldr(x, left, right, None, outputs, 1.0, False, reflected)[:, others])
        x_gradient, *gradients = ldr_backward(broken_g, x, left, right, 1.0, reflected)
        assert x_gradient[:, row].isnan().all()
        assert torch.equal(x_gradient[:, others], ldr_backward(g, x, left, right, 1.0, reflected)[0][:, others])
        assert all(gradient.isnan().any() for gradient in gradients)
        x_gradient, *gradients = ldr_backward(g, broken_x, left, right, 1.0, reflected)
        assert x_gradient.isfinite().all()
        assert all(gradient.isnan().any() for gradient in gradients)


# A part, its rank and a number of tokens.
THREADED = (
    *(((768, 768, 768), 4, 300), ((768, 768, 768), 4, 7), ((97, 97, 60), 2, 1000), ((3072, 768, 3072), 2, 65)),
    ((5, 4, 5), 5, 33),
)


@cases("threaded, reflected, dtype", in_turns(THREADED, BOTH, (torch.float32, torch.bfloat16)))
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_every_run(
    threaded: tuple[tuple[int, int, int], int, int], dtype: torch.dtype, reflected: bool, threads
) -> None:
    (size, outputs, inputs), rank, tokens = threaded
    left, right = generators(rank, size, dtype)
    x, g = torch.randn(1, tokens, inputs).to(dtype), torch.randn(1, tokens, outputs).to(dtype)
    threads(1)
    wanted = everything(x, g, left, right, g, reflected)
    assert all(map(torch.equal, everything(x, g, left, right, g, reflected), wanted))
    # The rounding of torch.fft depends on how threads share the work, so the reference repeats itself for one number
    # of threads only.
    for count in (2, 3, 1) if _extension.available else (1,):
        threads(count)
        assert all(map(torch.equal, everything(x, g, left, right, g, reflected), wanted))
