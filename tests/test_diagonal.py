"""The diagonal operators against the dense float64 matrix, for every shape and layout that hurts, and their memory."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from surm_kernels import _extension, functional, ops
from surm_kernels.command.peak_memory import PeakMemory
from surm_kernels.ops.diagonal import diagonal, diagonal_backward, diagonal_pullback
from tests import oracle
from tests.layouts import LAYOUTS
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Shape = tuple[int, int, int]  # rows and columns of the matrix, and its terms
Factors = tuple[Tensor, Tensor, Tensor]

SHAPES: list[Shape] = [
    (1, 1, 1),
    (5, 3, 2),
    (3, 5, 7),
    (7, 1, 1),
    (1, 16, 4),
    (16, 16, 16),
    (33, 97, 12),
    (64, 192, 64),
    (300, 200, 97),
    (200, 300, 1),
    (1000, 130, 33),
    (130, 63, 1500),
    (768, 768, 404),
]
SMALL_SHAPES: list[Shape] = [(5, 3, 2), (1, 16, 4), (33, 97, 12), (64, 192, 64)]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75
# Tokens from which a kernel's chunks are two: one chunk leaves the threads to the platform's products.
TWO_CHUNKS = 257
# 16-bit: rounded by both products of the platform and between them, so √3 times one rounding in the mean ...
ROUNDING_FACTOR = 1.8
ENOUGH = 16_000  # ... of so many numbers between them; fewer meet only the bound of the worst case
ROUNDINGS = 3


def shape_cases(shapes: list[Shape]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=lambda shape: "{}x{}-{}".format(*shape))


dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
kernel_only = pytest.mark.skipif(not _extension.available, reason="a promise of the compiled library")


def factors(shape: Shape, dtype: torch.dtype = torch.float32, groups: int = 1) -> Factors:
    """u and v with columns of length about one, as bases have them, and s."""
    m, n, k = shape
    u, s, v = torch.randn(groups, m, k) / m**0.5, torch.randn(groups, k), torch.randn(groups, n, k) / n**0.5
    return u.to(dtype), s.to(dtype), v.to(dtype)


def tokens_and_cotangents(
    shape: Shape, tokens: int, dtype: torch.dtype = torch.float32, groups: int = 1
) -> tuple[Tensor, Tensor]:
    m, n, _ = shape
    return torch.randn(groups, tokens, n).to(dtype), torch.randn(groups, tokens, m).to(dtype)


def tokens_of(shape: Shape) -> tuple[int, ...]:
    """The token counts tried at a shape: all of them, about the ends of chunks as well, where that is cheap."""
    m, n, k = shape
    if (m + n) * k <= 20_000:
        return (0, 1, 2, 15, 16, 17, 33, 255, 256, TWO_CHUNKS, 1000)
    return (0, 1, 17, TWO_CHUNKS)


def matrices(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return torch.stack([oracle.siva(*problem) for problem in zip(u, s, v, strict=True)])


@dtype_cases
@shape_cases(SHAPES)
def test_product_and_gradients_match_the_dense_matrix(shape: Shape, dtype: torch.dtype) -> None:
    parameters = factors(shape, dtype)
    for tokens in tokens_of(shape):
        assert_matches(parameters, *tokens_and_cotangents(shape, tokens, dtype))


@dtype_cases
@shape_cases(SMALL_SHAPES)
def test_groups_are_independent_problems(shape: Shape, dtype: torch.dtype) -> None:
    parameters = factors(shape, dtype, groups=3)
    for tokens in (0, 1, 33, TWO_CHUNKS):
        assert_matches(parameters, *tokens_and_cotangents(shape, tokens, dtype, groups=3))


def assert_matches(parameters: Factors, x: Tensor, g: Tensor, operators: ModuleType = ops.diagonal) -> None:
    """The product, with and without base, its transpose, and both gradients; g has the output's shape."""
    u, s, v = parameters
    dense = matrices(u, s, v)
    x64, g64, u64, s64, v64 = (t.double() for t in (x, g, u, s, v))
    p, q = g64 @ u64, x64 @ v64
    y, x_gradient, s_gradient = x64 @ dense.mT, SCALE * g64 @ dense, SCALE * (p * q).sum(1)
    # The sums of the magnitudes, and the norms the results have where their terms do not happen to cancel.
    terms_y = (q * s64[:, None]).abs() @ u64.abs().mT
    terms_x = SCALE * (p * s64[:, None]).abs() @ v64.abs().mT
    terms_s = SCALE * (p * q).abs().sum(1)
    m, n, tokens = u.shape[1], v.shape[1], max(x.shape[1], 1)
    directions = u64.norm(dim=1) * v64.norm(dim=1)
    size = (s64 * directions).norm().item()
    size_y, size_x = x64.norm().item() * size / n**0.5, SCALE * g64.norm().item() * size / m**0.5
    size_s = SCALE * (x64.norm() * g64.norm() * directions.norm()).item() / (tokens * m * n) ** 0.5

    many = q.numel() >= ENOUGH
    assert_close(operators.diagonal(x, u, s, v, None, 1.0), y, "y", size_y, terms_y, many)
    with_base = operators.diagonal(x, u, s, v, g, SCALE)
    assert_close(with_base, g64 + SCALE * y, "y with base", SCALE * size_y, g64.abs() + SCALE * terms_y, many)
    transposed = operators.diagonal(g, v, s, u, None, SCALE)
    assert_close(transposed, x_gradient, "transposed y", size_x, terms_x, many)
    assert_close(operators.diagonal_pullback(g, x, u, v, SCALE), s_gradient, "pullback", size_s, terms_s, False)
    got_x, got_s = operators.diagonal_backward(g, x, u, s, v, SCALE)
    assert_close(got_x, x_gradient, "gradient of x", size_x, terms_x, many)
    assert_close(got_s, s_gradient, "gradient of s", size_s, terms_s, False)


def assert_close(got: Tensor, exact: Tensor, name: str, size: float, terms: Tensor, many: bool) -> None:
    if many or got.dtype not in oracle.SIXTEEN_BIT:
        return oracle.assert_close(got, exact, name, size, rounding=ROUNDING_FACTOR)
    assert got.shape == exact.shape
    worst = ROUNDINGS * torch.finfo(got.dtype).eps / 2
    allowed = (1.01 * worst + oracle.FLOAT32_TOLERANCE) * terms.norm().item()
    found = (got.double() - exact).norm().item()
    assert found <= allowed, f"{name} is off by {found:.2e}, allowed are {allowed:.2e}"
    return None


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=["bfloat16", "float16"])
@shape_cases([(64, 192, 64), (300, 200, 97), (768, 768, 404)])
def test_sums_over_tokens_that_lean_one_way_are_hardly_rounded_but_once(shape: Shape, dtype: torch.dtype) -> None:
    u, s, v = factors(shape, dtype)
    x, noise = tokens_and_cotangents(shape, 1000, dtype)
    g = (noise + diagonal(x, u, s, v, None, 1.0)).to(dtype)
    exact = ((g.double() @ u.double()) * (x.double() @ v.double())).sum(1)
    for got in (diagonal_pullback(g, x, u, v, 1.0), diagonal_backward(g, x, u, s, v, 1.0)[1]):
        oracle.assert_close(got, exact, rounding=ROUNDING_FACTOR)


def test_the_product_is_that_of_the_formula() -> None:
    u, s, v = factors((9, 7, 5), torch.float64)
    x = torch.randn(1, 6, 7, dtype=torch.float64)
    oracle.assert_close(diagonal(x, u, s, v, None, 1.0)[0], x[0] @ (u[0] @ torch.diag(s[0]) @ v[0].T).T)


@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 300),
    scale=st.floats(-4, 4, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_product_transpose_and_pullback_are_adjoint_to_each_other(shape, groups, tokens, scale, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, n, k = shape
    u, s, v, x, g = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((groups, m, k), (groups, k), (groups, n, k), (groups, tokens, n), (groups, tokens, m))
    )
    product = (g * diagonal(x, u, s, v, None, scale)).sum()
    allowed = 1e-14 * abs(scale) * (g.norm() * x.norm() * u.norm() * s.norm() * v.norm()).item()
    assert abs(product - (x * diagonal(g, v, s, u, None, scale)).sum()) <= allowed
    assert abs(product - (s * diagonal_pullback(g, x, u, v, scale)).sum()) <= allowed
    for gradient, variable in zip(diagonal_backward(g, x, u, s, v, scale), (x, s), strict=True):
        assert abs(product - (variable * gradient).sum()) <= allowed


DIAGONAL_LAYOUTS = LAYOUTS | {  # a number of at most a half
    "one number for all": lambda tokens, n, dtype: (torch.rand(1, 1, 1) - 0.5).to(dtype).expand(2, tokens, n),
}


@cases("layout, dtype, tokens", in_turns([*DIAGONAL_LAYOUTS], DTYPES, (1, 7, 300)))
def test_strided_and_expanded_tensors_are_read_in_place(layout: str, tokens: int, dtype: torch.dtype) -> None:
    m, n, k = 20, 60, 6
    x, g = DIAGONAL_LAYOUTS[layout](tokens, n, dtype), DIAGONAL_LAYOUTS[layout](tokens, m, dtype)
    u, v = DIAGONAL_LAYOUTS[layout](m, k, dtype), DIAGONAL_LAYOUTS[layout](n, k, dtype)
    s = DIAGONAL_LAYOUTS[layout](1, k, dtype)[:, 0]
    assert_matches((u, s, v), x, g)
    results = (
        diagonal(x, u, s, v, g, SCALE),
        diagonal_pullback(g, x, u, v, SCALE),
        *diagonal_backward(g, x, u, s, v, 1),
    )
    assert all(t.is_contiguous() for t in results)


def test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input() -> None:
    x, base, one, identity = torch.zeros(1, 3, 8), torch.randn(1, 3, 8), torch.ones(1, 8), torch.eye(8)[None]
    outputs = [
        diagonal(base, identity, one, identity, None, 1.0),
        diagonal(x, identity, one, identity, base, 1.0),
        diagonal_pullback(base, base, identity, identity, 1.0),
        *diagonal_backward(base, base, identity, one, identity, 1.0),
    ]
    assert torch.equal(outputs[0], base)
    assert torch.equal(outputs[1], base)
    inputs = {t.untyped_storage().data_ptr() for t in (x, base, one, identity)}
    assert all(t.untyped_storage().data_ptr() not in inputs for t in outputs)
    assert all(t.is_contiguous() for t in outputs)


@shape_cases(SMALL_SHAPES)
@pytest.mark.parametrize("tokens", [2, 16, 33, 300])
def test_each_row_is_as_accurate_as_its_own_size_allows(tokens: int, shape: Shape) -> None:
    u, s, v = factors(shape)
    dense = matrices(u, s, v)
    magnitude = 10 ** torch.linspace(-4, 4, tokens)[torch.randperm(tokens)]
    alternating = torch.where(torch.arange(tokens) % 2 == 0, 1.0, 1e4)
    for scales in (magnitude, alternating, alternating.flip(0)):
        x, g = (t * scales[:, None] for t in tokens_and_cotangents(shape, tokens))
        y, x_gradient = diagonal(x, u, s, v, None, 1.0), diagonal_backward(g, x, u, s, v, 1.0)[0]
        for rows, weights, got in ((x, dense.mT, y), (g, dense, x_gradient)):
            size = weights[0].norm().item() / rows.shape[2] ** 0.5
            for row, result in zip(rows[0].double(), got[0], strict=True):
                oracle.assert_close(result, row @ weights[0], size=row.norm().item() * size)


@shape_cases(SMALL_SHAPES)
@pytest.mark.parametrize("tokens", [2, 33, 300])
def test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens: int, shape: Shape) -> None:
    u, s, v = factors(shape)
    x, g = (t * 1e4 for t in tokens_and_cotangents(shape, tokens))
    x[:, ::2] = g[:, ::2] = 0
    for result in (diagonal(x, u, s, v, None, 1.0), diagonal_backward(g, x, u, s, v, 1.0)[0]):
        assert (result[:, ::2] == 0).all()
        assert (result[:, 1::2] != 0).any(-1).all()
    assert (diagonal_pullback(g, torch.zeros_like(x), u, v, 1.0) == 0).all()
    assert (diagonal_backward(torch.zeros_like(g), x, u, s, v, 1.0)[1] == 0).all()


@cases("shape, dtype, bad", in_turns(SMALL_SHAPES, DTYPES, (float("nan"), float("inf"), float("-inf"))))
def test_a_row_that_is_not_finite_gives_no_finite_value_in_that_row_and_touches_no_other(
    shape: Shape, bad: float, dtype: torch.dtype
) -> None:
    u, s, v = factors(shape, dtype)
    for tokens in (1, 2, 33, 300):
        x, g = tokens_and_cotangents(shape, tokens, dtype)
        row = tokens // 2
        others = torch.arange(tokens) != row
        broken_x, broken_g = x.clone(), g.clone()
        broken_x[:, row, -1], broken_g[:, row, 0] = bad, bad

        y = diagonal(broken_x, u, s, v, None, 1.0)
        assert not y[:, row].isfinite().any()
        assert torch.equal(y[:, others], diagonal(x, u, s, v, None, 1.0)[:, others])
        x_gradient, s_gradient = diagonal_backward(broken_g, x, u, s, v, 1.0)
        assert not x_gradient[:, row].isfinite().any()
        assert torch.equal(x_gradient[:, others], diagonal_backward(g, x, u, s, v, 1.0)[0][:, others])
        assert not s_gradient.isfinite().any()
        x_gradient, s_gradient = diagonal_backward(g, broken_x, u, s, v, 1.0)
        assert x_gradient.isfinite().all()
        assert not s_gradient.isfinite().any()
        assert not diagonal_pullback(g, broken_x, u, v, 1.0).isfinite().any()


def everything(parameters: Factors, x: Tensor, g: Tensor) -> list[Tensor]:
    u, s, v = parameters
    return [
        diagonal(x, u, s, v, g, SCALE),
        diagonal(g, v, s, u, None, SCALE),
        diagonal_pullback(g, x, u, v, SCALE),
        *diagonal_backward(g, x, u, s, v, SCALE),
    ]


THREADED: list[Shape] = [*SMALL_SHAPES, (768, 768, 404)]
GROUPS_AND_TOKENS = ((1, TWO_CHUNKS), (1, 1000), (2, 7), (2, 300))


@cases("shape, groups_and_tokens, dtype", in_turns(THREADED, GROUPS_AND_TOKENS, (torch.float32, torch.bfloat16)))
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_every_run(
    shape: Shape, groups_and_tokens: tuple[int, int], dtype: torch.dtype, threads
) -> None:
    groups, tokens = groups_and_tokens
    inputs = factors(shape, dtype, groups), *tokens_and_cotangents(shape, tokens, dtype, groups)
    threads(1)
    wanted = everything(*inputs)
    assert all(map(torch.equal, everything(*inputs), wanted))
    # torch's matrix products round by how threads share the work, so the reference repeats itself for one number only.
    for count in (2, 3, 1) if _extension.available else (1,):
        threads(count)
        assert all(map(torch.equal, everything(*inputs), wanted))


@dtype_cases
@pytest.mark.parametrize("tokens", [1, 256])
def test_results_of_one_chunk_are_right_for_any_number_of_threads(tokens: int, dtype: torch.dtype, threads) -> None:
    shape = (300, 200, 97)
    parameters, (x, g) = factors(shape, dtype), tokens_and_cotangents(shape, tokens, dtype)
    for count in (1, 2, 3):
        threads(count)
        assert_matches(parameters, x, g)


MEMORY_CASES: dict[str, Callable[[Tensor, Tensor, Factors], object]] = {
    "product": lambda x, g, parameters: diagonal(x, *parameters, g, SCALE),
    "pullback": lambda x, g, parameters: diagonal_pullback(g, x, parameters[0], parameters[2], SCALE),
    "backward": lambda x, g, parameters: diagonal_backward(g, x, *parameters, SCALE),
}


@kernel_only
@pytest.mark.parametrize("case", MEMORY_CASES)
def test_memory_never_holds_a_number_for_every_token_and_direction(case: str) -> None:
    shape, tokens = (16, 16, 1024), 32 * 1024
    parameters, few = factors(shape), tokens_and_cotangents(shape, 1000)
    x, g = tokens_and_cotangents(shape, tokens)
    MEMORY_CASES[case](*few, parameters)
    peak = PeakMemory.start()
    MEMORY_CASES[case](x, g, parameters)
    growth = peak.growth()
    if growth is None:
        pytest.skip("this system does not tell the peak of a part of a process")
    assert growth < 0.125 * tokens * shape[2] * 4 / 2**20


def test_a_training_step_takes_the_product_and_one_pass_backward_and_keeps_x_and_the_parameters() -> None:
    x, U, s, V = torch.randn(9, 12, requires_grad=True), torch.randn(7, 5), torch.randn(5), torch.randn(12, 5)
    s.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = functional.siva_linear(x, U, s, V)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (x, U, s, V)]
    with torch.profiler.profile() as profile:
        y.sum().backward()
    ran = {event.key for event in profile.key_averages() if event.key.startswith("surm_kernels::")}
    assert ran == {"surm_kernels::diagonal_backward"}


def counted(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    with FlopCounterMode(display=False):
        return function(*tensors)


SURROUNDINGS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Tensor]]] = {
    "inference mode": torch.inference_mode(),
    "no gradients": torch.no_grad(),
    "autocast": torch.autocast("cpu", torch.bfloat16),
    "a mode that sees every operator": lambda function: lambda *tensors: counted(function, *tensors),
    "vmap": lambda function: lambda *tensors: torch.vmap(function)(*(t.unsqueeze(0) for t in tensors))[0],
    "forward mode": lambda function: lambda *tensors: torch.func.jvp(function, tensors, tensors)[0],
    "gradient": lambda function: lambda *tensors: torch.func.vjp(function, *tensors)[0],
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_threads_do_the_same_whatever_is_in_force_in_the_one_that_calls(surrounding: str) -> None:
    (u, s, v), (x, base) = factors((33, 97, 12)), tokens_and_cotangents((33, 97, 12), 1000)
    tensors = [t.requires_grad_() for t in (x, u, s, v, base)]

    def outcome(x: Tensor, u: Tensor, s: Tensor, v: Tensor, base: Tensor) -> Tensor:
        x_gradient, s_gradient = diagonal_backward(base, x, u, s, v, SCALE)
        return torch.cat([t.flatten() for t in (diagonal(x, u, s, v, base, SCALE), x_gradient, s_gradient)])

    wanted = outcome(*tensors)
    assert torch.equal(SURROUNDINGS[surrounding](outcome)(*tensors), wanted)


@pytest.mark.parametrize("trained", ["x", "s", "U", "V", "xs", "xU", "sV", "xsU", "xUsV"])
def test_gradients_are_right_for_any_choice_of_what_is_trained(trained: str) -> None:
    tensors = {
        "x": torch.randn(2, 3, 6).double(),
        "U": torch.randn(5, 4).double(),
        "s": torch.randn(4).double(),
        "V": torch.randn(6, 4).double(),
    }
    leaves = [tensors[name].requires_grad_() for name in trained]
    g = torch.randn(2, 3, 5).double()
    exact = tensors["x"] @ oracle.siva(tensors["U"], tensors["s"], tensors["V"]).T
    y = functional.siva_linear(**tensors)
    for got, wanted in zip(*(torch.autograd.grad(result, leaves, g) for result in (y, exact)), strict=True):
        oracle.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=["bfloat16", "float16"])
def test_gradients_of_the_bases_are_rounded_once(dtype: torch.dtype) -> None:
    (u, s, v), (x, g) = factors((33, 97, 12), dtype), tokens_and_cotangents((33, 97, 12), 40, dtype)
    U, V = u[0].requires_grad_(), v[0].requires_grad_()
    got = torch.autograd.grad(functional.siva_linear(x[0], U, s[0], V), (U, V), g[0])
    wide = [t.detach().double().requires_grad_() for t in (U, V)]
    exact = torch.autograd.grad(x[0].double() @ oracle.siva(wide[0], s[0], wide[1]).T, wide, g[0].double())
    for one, wanted in zip(got, exact, strict=True):
        oracle.assert_close(one, wanted)


@kernel_only
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, u, s, v: diagonal(x[0], u, s, v, None, 1.0), "x must have 3 dimensions, got 2"),
        (lambda x, u, s, v: diagonal(x, u.double(), s, v, None, 1.0), "u has another dtype"),
        (lambda x, u, s, v: diagonal(x, u, s[:, :2], v, None, 1.0), r"s.shape\[1\] must be 3, got 2"),
        (lambda x, u, s, v: diagonal(x, u, s, v[:, :4], None, 1.0), r"v.shape\[1\] must be 5, got 4"),
        (lambda x, u, s, v: diagonal(x, u, s, v, x, 1.0), "a size of base must be 6, got 5"),
        (lambda x, u, s, v: diagonal_pullback(x, x, u, v, 1.0), r"g.shape\[2\] must be 6, got 5"),
        (lambda x, u, s, v: diagonal_pullback(x[:, :1], x, u, v, 1.0), "a size of g must be 2, got 1"),
        (lambda x, u, s, v: diagonal_backward(x, x, u, s, v[..., :1], 1.0), r"v.shape\[2\] must be 3, got 1"),
    ],
)
def test_private_operators_refuse_what_would_be_read_out_of_bounds(call: Callable, message: str) -> None:
    x, u, s, v = torch.randn(1, 2, 5), torch.randn(1, 6, 3), torch.randn(1, 3), torch.randn(1, 5, 3)
    with pytest.raises(RuntimeError, match=message):
        call(x, u, s, v)
