"""Transforms on tensor cores under the emulator: their accuracy, rows that keep to themselves, and when they serve."""

import pytest
import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.block_kinds import KINDS as KINDS_OF_BLOCKS
from tests import oracle
from tests import test_grid as parity
from tests.emulator.stand_in import as_it_was, emulated
from tests.tensor_cores import (
    ALL_SIZES,
    BLOCKS,
    DRAWS,
    DTYPES,
    FILLING,
    KINDS,
    OF_EACH,
    SIZES,
    Draw,
    assert_contract,
    assert_rows_accurate,
    drawn,
    roundings,
)
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SCALE = 0.75
LARGEST = SIZES[-2:]  # take seconds in float16, whose values between the stages are twice as many
each_block = cases(
    "size, block, dtype",
    [
        *((*block, torch.bfloat16) for block in BLOCKS),
        *(
            pytest.param(*block, torch.float16, marks=pytest.mark.slow if block[0] in LARGEST else ())
            for block in FILLING
        ),
    ],
)
PAIRS = (SIZES[0], SIZES[2], SIZES[3])  # of every kind of outer stage the cheapest


@pytest.fixture(scope="module", autouse=True)
def emulated_grid():
    yield from emulated(parity)


@pytest.fixture
def kernels(emulated_grid):
    yield from as_it_was(emulated_grid)


def product(draw: Draw, base: Tensor | None = None, scale: float = 1.0, transposed: bool = False) -> Tensor:
    rows, c = draw.g if transposed else draw.x, draw.c[None, None, None]
    return parity.grid(rows, c, base, draw.block, c.shape[-1], scale, transposed)


def pullback(draw: Draw, scale: float = 1.0) -> Tensor:
    size = draw.c.shape[-1]
    return parity.grid_pullback(draw.g, draw.x, draw.block, size, size, scale)[0, 0, 0]


def backward(draw: Draw, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    c = draw.c[None, None, None]
    x_gradient, c_gradient = parity.grid_backward(draw.g, draw.x, c, draw.block, c.shape[-1], scale, False)
    return x_gradient, c_gradient[0, 0, 0]


def in_float32(monkeypatch: pytest.MonkeyPatch, call):
    """What a call gives by the exact kernels."""
    with monkeypatch.context() as patch:
        patch.setenv("SURM_KERNELS_GPU_PRECISION", "float32")
        return call()


# ---- accuracy ----


def assert_products_keep_the_contract(size: int, block: int, kind: str, dtype: torch.dtype) -> None:
    draws = [drawn(size, 1, kind, block, dtype) for _ in range(DRAWS)]
    assert_contract([(product(draw), draw.y()) for draw in draws])


@cases("block, kind", in_turns(BLOCKS, list(KINDS)))
def test_products_keep_the_contract(block: tuple[int, int], kind: str) -> None:
    assert_products_keep_the_contract(*block, kind, torch.bfloat16)


@cases("size, kind", [(size, list(KINDS)[turn % 3]) for turn, size in enumerate(SIZES)])
def test_products_in_float16_keep_the_contract(size: int, kind: str) -> None:
    assert_products_keep_the_contract(size, CIRCULANT, kind, torch.float16)


@pytest.mark.slow
@cases("block, kind", in_turns(FILLING, list(KINDS)))
def test_products_in_float16_of_every_block_and_kind_keep_the_contract(block: tuple[int, int], kind: str) -> None:
    assert_products_keep_the_contract(*block, kind, torch.float16)


def assert_gradients_keep_the_contract(size: int, block: int, kind: str, dtype: torch.dtype) -> None:
    draws = [drawn(size, 3, kind, block, dtype) for _ in range(DRAWS)]
    assert_contract([(pullback(draw), draw.c_gradient()) for draw in draws])
    found = [backward(draw) for draw in draws]
    assert_contract([(x_gradient, draw.x_gradient()) for (x_gradient, _), draw in zip(found, draws, strict=True)])
    assert_contract([(c_gradient, draw.c_gradient()) for (_, c_gradient), draw in zip(found, draws, strict=True)])


@cases("size, kind", [(size, list(KINDS)[turn % 3]) for turn, size in enumerate(SIZES[:4])])
def test_gradients_keep_the_contract(size: int, kind: str) -> None:
    assert_gradients_keep_the_contract(size, CIRCULANT, kind, torch.bfloat16)


@cases("size, kind", [(size, list(KINDS)[turn % 3]) for turn, size in enumerate(SIZES[:3])])
def test_gradients_in_float16_keep_the_contract(size: int, kind: str) -> None:
    assert_gradients_keep_the_contract(size, CIRCULANT, kind, torch.float16)


@pytest.mark.slow
@cases("block, kind", in_turns(BLOCKS, list(KINDS)))
def test_gradients_of_every_block_and_kind_keep_the_contract(block: tuple[int, int], kind: str) -> None:
    assert_gradients_keep_the_contract(*block, kind, torch.bfloat16)


@pytest.mark.slow
@cases("block, kind", in_turns(FILLING, list(KINDS)))
def test_gradients_in_float16_of_every_block_and_kind_keep_the_contract(block: tuple[int, int], kind: str) -> None:
    assert_gradients_keep_the_contract(*block, kind, torch.float16)


def assert_accurate_with_base_and_scale(draw: Draw) -> None:
    base = torch.randn(draw.x.shape).to(draw.x.dtype)
    assert_rows_accurate(product(draw), draw.y())
    assert_rows_accurate(product(draw, base, SCALE), base.double() + SCALE * draw.y())
    assert_rows_accurate(product(draw, base, SCALE, True), base.double() + SCALE * draw.x_gradient())
    assert roundings(pullback(draw, SCALE), SCALE * draw.c_gradient()) <= OF_EACH
    x_gradient, c_gradient = backward(draw, SCALE)
    assert_rows_accurate(x_gradient, SCALE * draw.x_gradient())
    assert roundings(c_gradient, SCALE * draw.c_gradient()) <= OF_EACH


TOKENS = [*in_turns(SIZES[:4], (1, 2, 5)), (4096, 3), (8192, 3)]


@cases("size, tokens, dtype", [(*case, dtype) for dtype in DTYPES for case in TOKENS])
def test_any_number_of_tokens_with_base_and_scale(size: int, tokens: int, dtype: torch.dtype) -> None:
    assert_accurate_with_base_and_scale(drawn(size, tokens, dtype=dtype))


@cases("size, block", [(size, (CIRCULANT, SKEW_CIRCULANT)[turn % 2]) for turn, size in enumerate(ALL_SIZES)])
def test_every_size_with_base_and_scale(size: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = drawn(size, 3, block=block)
    assert not torch.equal(product(draw), in_float32(monkeypatch, lambda: product(draw)))
    assert_accurate_with_base_and_scale(draw)


@pytest.mark.slow
@cases("size, block", in_turns(ALL_SIZES, (CIRCULANT, SKEW_CIRCULANT)))
def test_every_size_of_every_kind_with_base_and_scale(size: int, block: int) -> None:
    assert_accurate_with_base_and_scale(drawn(size, 3, block=block))


@cases(
    "kind, rows, columns",
    [
        *((TOEPLITZ, size, size) for size in (640, 768, 1024, 2048, 4096)),
        *((TOEPLITZ, 768, 3072), (TOEPLITZ, 1000, 512), (CIRCULANT, 1000, 1000), (SKEW_CIRCULANT, 1000, 1000)),
    ],
)
def test_parts_of_a_larger_circulant(kind: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its rows and columns a token has some, so that loads and stores end within it."""
    values = (torch.randn(1, 1, 1, KINDS_OF_BLOCKS[kind].values(rows, columns)) / columns**0.5).bfloat16()
    x, g, base = (torch.randn(1, 3, size).bfloat16() for size in (columns, rows, rows))
    w = oracle.grid(values[0].double(), kind, columns)
    y, x_gradient = x.double() @ w.T, g.double() @ w
    gradient = oracle.grid_sums(g[0].double().T @ x[0].double(), kind, rows, columns).flatten()
    forward = lambda: parity.grid(x, values, base, kind, columns, SCALE, False)  # noqa: E731
    assert_rows_accurate(forward(), base.double() + SCALE * y)
    assert not torch.equal(forward(), in_float32(monkeypatch, forward))
    assert_rows_accurate(parity.grid(g, values, None, kind, columns, 1.0, True), x_gradient)
    assert roundings(parity.grid_pullback(g, x, kind, rows, columns, 1.0).flatten(), gradient) <= OF_EACH
    got, got_gradient = parity.grid_backward(g, x, values, kind, columns, 1.0, False)
    assert_rows_accurate(got, x_gradient)
    assert roundings(got_gradient.flatten(), gradient) <= OF_EACH


@each_block
def test_more_tokens_than_the_blocks_of_threads_take_at_once(size: int, block: int, dtype: torch.dtype) -> None:
    draw = drawn(size, 33 if size <= 1024 else 9, block=block, dtype=dtype)
    assert_rows_accurate(product(draw), draw.y())
    assert roundings(pullback(draw), draw.c_gradient()) <= OF_EACH


@each_block
def test_rows_of_every_scale_are_accurate_by_themselves(size: int, block: int, dtype: torch.dtype) -> None:
    draw = drawn(size, 4, block=block, dtype=dtype)
    largest = 4 if dtype == torch.bfloat16 else 3
    scales = 10.0 ** torch.tensor([-4, largest, largest - 1, -2])[None, :, None]
    draw = draw._replace(x=(draw.x * scales).to(dtype), g=(draw.g / scales.flip(1)).to(dtype))
    assert_rows_accurate(product(draw), draw.y())
    x_gradient, c_gradient = backward(draw)
    assert_rows_accurate(x_gradient, draw.x_gradient())
    assert roundings(c_gradient, draw.c_gradient()) <= OF_EACH


@pytest.mark.parametrize("power", [-120, -30, 30, 120])
def test_matrices_of_every_scale_are_as_accurate(power: int) -> None:
    draw = drawn(1024, 3)
    draw = draw._replace(c=(draw.c * 2.0**power), x=(draw.x * 2.0 ** (-power / 2)).bfloat16())
    assert_rows_accurate(product(draw), draw.y())


@pytest.mark.parametrize("scale", [6e-8, 1e-6, 5e-5, 1e-4, 1e3, 1.5e4])
def test_rows_of_every_scale_that_float16_holds_are_accurate(scale: float) -> None:
    """Subnormal numbers included; the matrix brings results back to a magnitude of one."""
    for size in PAIRS:
        draw = drawn(size, 3)
        x = (draw.x.float() * scale).clamp(-65504, 65504).half()
        draw = Draw(draw.c.float() / scale, x, draw.g.half())
        assert_rows_accurate(product(draw), draw.y())
        assert roundings(pullback(draw, 1 / scale), draw.c_gradient() / scale) <= OF_EACH


@pytest.mark.parametrize("size", PAIRS)
def test_only_results_beyond_float16_overflow(size: int) -> None:
    x = torch.tensor([60000.0, -60000.0])[:, None].expand(1, 2, size).half()
    for total, largest in ((1.0, 60000), (1.09, 65400), (1.2, torch.inf)):
        y = product(Draw(torch.full((size,), total / size), x, x))
        wanted = torch.tensor([largest, -largest])[:, None].expand(1, 2, size)
        assert torch.equal(y.isinf(), wanted.isinf())
        torch.testing.assert_close(y.float(), wanted.float(), rtol=2**-11, atol=0)


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


@each_block
def test_rows_of_zeros_give_exact_zeros(size: int, block: int, dtype: torch.dtype) -> None:
    draw = drawn(size, 3, block=block, dtype=dtype)
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


BAD = 2 * (float("nan"), float("inf"), float("-inf"))


@cases("size, bad, dtype", [(*case, dtype) for dtype in DTYPES for case in zip(SIZES, BAD, strict=True)][:-2])
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(size: int, bad: float, dtype: torch.dtype) -> None:
    for token, tokens in ((1, 2), (2, 3)):  # the second of a pair, and a last one without a partner
        draw = drawn(size, tokens, dtype=dtype)
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


@each_block
def test_a_matrix_that_is_not_finite_spoils_all(size: int, block: int, dtype: torch.dtype) -> None:
    draw = drawn(size, 2, block=block, dtype=dtype)
    draw.c[0] = float("inf")
    assert product(draw).isnan().all()


@each_block
def test_results_are_bitwise_the_same_in_any_order_of_threads_and_blocks(
    size: int, block: int, dtype: torch.dtype, kernels
) -> None:
    draw = drawn(size, 3, block=block, dtype=dtype)

    def everything(seed: int) -> list[Tensor]:
        kernels.set_seed(seed)
        return [product(draw), *backward(draw)]

    assert all(map(torch.equal, everything(1), everything(2)))


# ---- when they serve ----


@each_block
def test_float32_arithmetic_can_be_asked_for(
    size: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = drawn(size, 3, block=block, dtype=dtype)
    call = lambda: (product(draw), pullback(draw), *backward(draw))  # noqa: E731
    exact = (draw.y(), draw.c_gradient(), draw.x_gradient(), draw.c_gradient())
    for got, precise, wanted in zip(call(), in_float32(monkeypatch, call), exact, strict=True):
        assert not torch.equal(got, precise)
        oracle.assert_close(precise, wanted)


def everything(x: Tensor, g: Tensor, c: Tensor, kind: int = CIRCULANT, size: int = 1024) -> tuple[Tensor, ...]:
    """Product and gradients of any tensors, with blocks of size x size."""
    return (
        parity.grid(x, c, None, kind, size, 1.0, False),
        parity.grid_pullback(g, x, kind, size, size, 1.0),
        *parity.grid_backward(g, x, c, kind, size, 1.0, False),
    )


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype)


HALF = torch.bfloat16
OTHERS = {
    "float32": lambda: everything(*(some(torch.float32, 1, 3, 1024) for _ in "xg"), some(torch.float32, 1, 1, 1, 1024)),
    "another size": lambda: everything(*(some(HALF, 1, 3, 384) for _ in "xg"), some(HALF, 1, 1, 1, 384), size=384),
    "a size in float16": lambda: everything(
        *(some(torch.float16, 1, 3, 1536) for _ in "xg"), some(torch.float16, 1, 1, 1, 1536), size=1536
    ),
    "a twist in float16": lambda: everything(
        *(some(torch.float16, 1, 3, 1024) for _ in "xg"), some(torch.float16, 1, 1, 1, 1024), SKEW_CIRCULANT
    ),
    "a small part": lambda: everything(
        *(some(HALF, 1, 3, 512) for _ in "xg"), some(HALF, 1, 1, 1, 1023), TOEPLITZ, size=512
    ),
    "groups": lambda: everything(*(some(HALF, 2, 3, 1024) for _ in "xg"), some(HALF, 2, 1, 1, 1024)),
    "blocks": lambda: everything(*(some(HALF, 1, 3, 2048) for _ in "xg"), some(HALF, 1, 2, 2, 1024)),
    "hankel": lambda: everything(*(some(HALF, 1, 3, 1024) for _ in "xg"), some(HALF, 1, 1, 1, 2047), HANKEL),
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


@cases("size, served", [(256, True), (768, True), (1024, False), (2048, True), (4096, False)])
def test_gradients_in_float16_need_room_for_all_planned_blocks(size: int, served: bool, kernels, monkeypatch) -> None:
    """On sm_80 some have not; products have."""
    kernels.set_device(1)
    draw = drawn(size, 3, dtype=torch.float16)
    for call, on_unit in ((lambda: (product(draw),), True), (lambda: (pullback(draw), *backward(draw)), served)):
        same = [torch.equal(*each) for each in zip(call(), in_float32(monkeypatch, call), strict=True)]
        assert same == [not on_unit] * len(same)


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


@cases(
    "size, block, dtype",
    [
        *((*case, torch.bfloat16) for case in in_turns(PAIRS, (CIRCULANT, SKEW_CIRCULANT))),
        *((size, CIRCULANT, torch.float16) for size in PAIRS),
    ],
)
def test_one_kept_spectrum_serves_both_kernels(size: int, block: int, dtype: torch.dtype) -> None:
    draw = drawn(size, 3, block=block, dtype=dtype)
    for transposed in (False, True):
        spectrum = parity.grid_spectrum(draw.c.float()[None, None, None], block, size, transposed)
        exact = draw._replace(g=draw.x).x_gradient() if transposed else draw.y()
        sizes = (block, 1, 1, size, size, SCALE)
        assert_rows_accurate(parity.grid_by_spectrum(draw.x, spectrum, None, *sizes), SCALE * exact)
        oracle.assert_close(parity.grid_by_spectrum(draw.x.float(), spectrum, None, *sizes), SCALE * exact)
