"""Transforms on tensor cores under the emulator: their accuracy, rows that keep to themselves, and when they serve."""

import pytest
import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, SKEW_CIRCULANT
from tests import oracle
from tests import test_grid as parity
from tests.emulator.stand_in import as_it_was, emulated
from tests.tensor_cores import (
    DRAWS,
    KINDS,
    OF_EACH,
    SIZES,
    Draw,
    assert_contract,
    assert_rows_accurate,
    circulant_product,
    drawn,
    roundings,
)
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SCALE = 0.75
each_size = pytest.mark.parametrize("size", SIZES)
PAIRS = (SIZES[0], SIZES[2], SIZES[3])  # of every kind of outer stage the cheapest


@pytest.fixture(scope="module", autouse=True)
def emulated_grid():
    yield from emulated(parity)


@pytest.fixture
def kernels(emulated_grid):
    yield from as_it_was(emulated_grid)


def product(draw: Draw, base: Tensor | None = None, scale: float = 1.0, transposed: bool = False) -> Tensor:
    rows, c = draw.g if transposed else draw.x, draw.c[None, None, None]
    return parity.grid(rows, c, base, CIRCULANT, c.shape[-1], scale, transposed)


def pullback(draw: Draw, scale: float = 1.0) -> Tensor:
    size = draw.c.shape[-1]
    return parity.grid_pullback(draw.g, draw.x, CIRCULANT, size, size, scale)[0, 0, 0]


def backward(draw: Draw, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    c = draw.c[None, None, None]
    x_gradient, c_gradient = parity.grid_backward(draw.g, draw.x, c, CIRCULANT, c.shape[-1], scale, False)
    return x_gradient, c_gradient[0, 0, 0]


# ---- accuracy ----


@cases("size, kind", in_turns(SIZES, list(KINDS)))
def test_products_keep_the_contract(size: int, kind: str) -> None:
    draws = [drawn(size, 1, kind) for _ in range(DRAWS)]
    assert_contract([(product(draw), draw.y()) for draw in draws])


def assert_gradients_keep_the_contract(size: int, kind: str) -> None:
    draws = [drawn(size, 3, kind) for _ in range(DRAWS)]
    assert_contract([(pullback(draw), draw.c_gradient()) for draw in draws])
    found = [backward(draw) for draw in draws]
    assert_contract([(x_gradient, draw.x_gradient()) for (x_gradient, _), draw in zip(found, draws, strict=True)])
    assert_contract([(c_gradient, draw.c_gradient()) for (_, c_gradient), draw in zip(found, draws, strict=True)])


@cases("size, kind", [(size, list(KINDS)[turn % 3]) for turn, size in enumerate(SIZES[:4])])
def test_gradients_keep_the_contract(size: int, kind: str) -> None:
    assert_gradients_keep_the_contract(size, kind)


@pytest.mark.slow
@cases("size, kind", in_turns(SIZES, list(KINDS)))
def test_gradients_of_every_size_and_kind_keep_the_contract(size: int, kind: str) -> None:
    assert_gradients_keep_the_contract(size, kind)


@cases("size, tokens", [*in_turns(SIZES[:4], (1, 2, 5)), (4096, 3), (8192, 3)])
def test_any_number_of_tokens_with_base_and_scale(size: int, tokens: int) -> None:
    draw = drawn(size, tokens)
    base = torch.randn(1, tokens, size).bfloat16()
    assert_rows_accurate(product(draw), draw.y())
    assert_rows_accurate(product(draw, base, SCALE), base.double() + SCALE * draw.y())
    assert_rows_accurate(product(draw, base, SCALE, True), base.double() + SCALE * draw.x_gradient())
    assert roundings(pullback(draw, SCALE), SCALE * draw.c_gradient()) <= OF_EACH
    x_gradient, c_gradient = backward(draw, SCALE)
    assert_rows_accurate(x_gradient, SCALE * draw.x_gradient())
    assert roundings(c_gradient, SCALE * draw.c_gradient()) <= OF_EACH


@each_size
def test_more_tokens_than_the_blocks_of_threads_take_at_once(size: int) -> None:
    draw = drawn(size, 33 if size <= 1024 else 9)
    assert_rows_accurate(product(draw), draw.y())
    assert roundings(pullback(draw), draw.c_gradient()) <= OF_EACH


@each_size
def test_rows_of_every_scale_are_accurate_by_themselves(size: int) -> None:
    draw = drawn(size, 4)
    scales = 10.0 ** torch.tensor([-4, 4, 3, -2])[None, :, None]
    draw = draw._replace(x=(draw.x * scales).bfloat16(), g=(draw.g / scales.flip(1)).bfloat16())
    assert_rows_accurate(product(draw), draw.y())
    x_gradient, c_gradient = backward(draw)
    assert_rows_accurate(x_gradient, draw.x_gradient())
    assert roundings(c_gradient, draw.c_gradient()) <= OF_EACH


@pytest.mark.parametrize("power", [-120, -30, 30, 120])
def test_matrices_of_every_scale_are_as_accurate(power: int) -> None:
    draw = drawn(1024, 3)
    draw = draw._replace(c=(draw.c * 2.0**power), x=(draw.x * 2.0 ** (-power / 2)).bfloat16())
    assert_rows_accurate(product(draw), draw.y())


@pytest.mark.parametrize("size", [768, 4096])
def test_where_a_large_mean_cancels_the_error_is_that_of_its_own_size(size: int) -> None:
    """Without cancellation, the norms of W and x would make the answer."""
    errors, relative = [], []
    for _ in range(DRAWS):
        c = torch.randn(size) / size**0.5
        draw = drawn(size, 1)._replace(c=(c - c.mean()).bfloat16(), x=(torch.randn(1, 1, size) + 30).bfloat16())
        got, exact = product(draw), draw.y()
        errors.append(roundings(got, exact))
        relative.append(((got.double() - exact).norm() / (draw.c.double().norm() * draw.x.double().norm())).item())
    assert max(errors) <= 8
    assert max(relative) <= 2**-11


# ---- rows keep to themselves ----


@each_size
def test_rows_of_zeros_give_exact_zeros(size: int) -> None:
    draw = drawn(size, 3)
    for token in (0, 2):
        draw.x[0, token] = 0
        draw.g[0, token] = 0
    y, (x_gradient, c_gradient) = product(draw), backward(draw)
    for got, exact in ((y, draw.y()), (x_gradient, draw.x_gradient())):
        assert (got[0, [0, 2]] == 0).all()
        assert_rows_accurate(got[:, 1:2], exact[:, 1:2])
    assert roundings(c_gradient, draw.c_gradient()) <= OF_EACH
    zeros = Draw(draw.c, torch.zeros_like(draw.x), draw.g)
    assert (pullback(zeros) == 0).all()
    assert (product(draw._replace(c=torch.zeros_like(draw.c))) == 0).all()


@cases("size, bad", list(zip(SIZES, 2 * (float("nan"), float("inf"), float("-inf")), strict=True)))
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(size: int, bad: float) -> None:
    for token, tokens in ((1, 2), (2, 3)):  # the second of a pair, and a last one without a partner
        draw = drawn(size, tokens)
        kept = [other for other in range(tokens) if other != token]
        exact, exact_gradient = draw.y(), draw.x_gradient()
        draw.x[0, token, size // 2] = bad
        y, (x_gradient, c_gradient) = product(draw), backward(draw)
        assert y[0, token].isnan().all() and c_gradient.isnan().all()
        assert_rows_accurate(y[:, kept], exact[:, kept])
        assert_rows_accurate(x_gradient, exact_gradient)
        draw.g[0, token, size // 3] = bad
        x_gradient, _ = backward(draw)
        assert x_gradient[0, token].isnan().all()
        assert_rows_accurate(x_gradient[:, kept], exact_gradient[:, kept])


@each_size
def test_a_matrix_that_is_not_finite_spoils_all(size: int) -> None:
    draw = drawn(size, 2)
    draw.c[0] = float("inf")
    assert product(draw).isnan().all()


@each_size
def test_results_are_bitwise_the_same_in_any_order_of_threads_and_blocks(size: int, kernels) -> None:
    draw = drawn(size, 3)

    def everything(seed: int) -> list[Tensor]:
        kernels.set_seed(seed)
        return [product(draw), *backward(draw)]

    assert all(map(torch.equal, everything(1), everything(2)))


# ---- when they serve ----


def in_float32(monkeypatch: pytest.MonkeyPatch, call) -> tuple[Tensor, ...]:
    """What a call gives by the exact kernels."""
    with monkeypatch.context() as patch:
        patch.setenv("SURM_KERNELS_GPU_PRECISION", "float32")
        return call()


@each_size
def test_float32_arithmetic_can_be_asked_for(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = drawn(size, 3)
    call = lambda: (product(draw), pullback(draw), *backward(draw))  # noqa: E731
    exact = (draw.y(), draw.c_gradient(), draw.x_gradient(), draw.c_gradient())
    for got, precise, wanted in zip(call(), in_float32(monkeypatch, call), exact, strict=True):
        assert not torch.equal(got, precise)
        oracle.assert_close(precise, wanted)


def everything(x: Tensor, g: Tensor, c: Tensor, kind: int = CIRCULANT) -> tuple[Tensor, ...]:
    """Product and gradients of any tensors."""
    size = c.shape[-1]
    return (
        parity.grid(x, c, None, kind, size, 1.0, False),
        parity.grid_pullback(g, x, kind, size, size, 1.0),
        *parity.grid_backward(g, x, c, kind, size, 1.0, False),
    )


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype)


HALF = torch.bfloat16
OTHERS = {
    "float16": lambda: everything(*(some(torch.float16, 1, 3, 1024) for _ in "xg"), some(torch.float16, 1, 1, 1, 1024)),
    "float32": lambda: everything(*(some(torch.float32, 1, 3, 1024) for _ in "xg"), some(torch.float32, 1, 1, 1, 1024)),
    "another size": lambda: everything(*(some(HALF, 1, 3, 512) for _ in "xg"), some(HALF, 1, 1, 1, 512)),
    "groups": lambda: everything(*(some(HALF, 2, 3, 1024) for _ in "xg"), some(HALF, 2, 1, 1, 1024)),
    "blocks": lambda: everything(*(some(HALF, 1, 3, 2048) for _ in "xg"), some(HALF, 1, 2, 2, 1024)),
    "skew": lambda: everything(*(some(HALF, 1, 3, 1024) for _ in "xg"), some(HALF, 1, 1, 1, 1024), SKEW_CIRCULANT),
    "unaligned rows": lambda: everything(*(some(HALF, 1, 3, 1028)[..., 4:] for _ in "xg"), some(HALF, 1, 1, 1, 1024)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_takes_the_exact_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    got = OTHERS[name]()
    torch.manual_seed(1)
    assert all(map(torch.equal, got, in_float32(monkeypatch, OTHERS[name])))


def test_an_older_device_takes_the_exact_kernels(kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.set_device(2)
    draw = drawn(1024, 3)
    call = lambda: (product(draw), pullback(draw))  # noqa: E731
    assert all(map(torch.equal, call(), in_float32(monkeypatch, call)))


def test_parameters_in_float32_and_strided_rows_are_served() -> None:
    draw = drawn(1024, 6)
    c, x, g = draw.c.float()[None, None, None] + 1e-4, draw.x[:, ::2], draw.g[:, ::2]
    assert not x.is_contiguous()
    y, c_sum, x_gradient, c_gradient = everything(x, g, c)
    wide = Draw(c[0, 0, 0], x, g)
    assert_rows_accurate(y, wide.y())
    assert_rows_accurate(x_gradient, wide.x_gradient())
    assert roundings(c_sum[0, 0, 0], wide.c_gradient()) <= OF_EACH
    assert c_gradient.dtype == torch.float32
    assert oracle.error(c_gradient[0, 0, 0], wide.c_gradient()) <= 1e-3


@pytest.mark.parametrize("size", PAIRS)
def test_one_kept_spectrum_serves_both_kernels(size: int) -> None:
    draw = drawn(size, 3)
    for transposed in (False, True):
        spectrum = parity.grid_spectrum(draw.c.float()[None, None, None], CIRCULANT, size, transposed)
        exact = circulant_product(draw.x, draw.c, transposed)
        sizes = (CIRCULANT, 1, 1, size, size, SCALE)
        assert_rows_accurate(parity.grid_by_spectrum(draw.x, spectrum, None, *sizes), SCALE * exact)
        oracle.assert_close(parity.grid_by_spectrum(draw.x.float(), spectrum, None, *sizes), SCALE * exact)
