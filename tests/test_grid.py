"""The grid operators against the dense float64 matrix, row by row, for every kind, size and layout that hurts.

Kinds and types take turns over the sizes, so that every pair of a kind, a type and a size is met. Dense matrices are
tested in test_grid_dense.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from surm_kernels import _extension
from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.ops.grid import (
    grid,
    grid_backward,
    grid_by_spectrum,
    grid_dense,
    grid_dense_adjoint,
    grid_pullback,
    grid_spectrum,
)
from tests import oracle
from tests.grids import (
    DTYPES,
    EVERY_KIND,
    Grid,
    either_kind,
    grid_of,
    grids_in_turns,
    kind_cases,
    kinds_and_types_in_turns,
)
from tests.layouts import LAYOUTS
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024, 1536)
LARGE = (
    *((grid_of(CIRCULANT, 3072, 3072), torch.float32), (grid_of(HANKEL, 3072, 3072), torch.bfloat16)),
    *((grid_of(SKEW_CIRCULANT, 4096, 4096), torch.float64), (grid_of(TOEPLITZ, 4096, 4096), torch.float16)),
)
SAMPLED_SIZES = ((4608, 4608), (11008, 11008), (13824, 13824), (14336, 14336), (4096, 11008), (11008, 4096))
RECTANGLES = (
    *((5, 3), (3, 5), (1, 7), (7, 1), (1, 97), (97, 1), (2, 63), (16, 15), (15, 16), (64, 192), (192, 64)),
    *((97, 1000), (1000, 97), (12, 1024), (1024, 12), (768, 3072), (3072, 768), (2048, 300)),
)
# Rows, columns, blocks of a column and blocks of a row; circulant blocks have as many rows as columns.
BLOCKS = (
    *((5, 5, 2, 3), (64, 33, 3, 2), (33, 64, 3, 2), (128, 128, 6, 6), (97, 12, 1, 4), (12, 97, 1, 4), (12, 97, 4, 1)),
    *((63, 63, 4, 1), (1, 1, 2, 2), (12, 12, 12, 3), (200, 200, 3, 1), (1, 2, 1, 2), (1, 2, 3, 5)),
)
SCALE = 0.75


def product(
    w: Grid, x: Tensor, values: Tensor, base: Tensor | None = None, scale: float = 1.0, transposed: bool = False
) -> Tensor:
    return grid(x, values, base, w.kind, w.columns, scale, transposed)


def pullback(w: Grid, g: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    return grid_pullback(g, x, w.kind, w.rows, w.columns, scale)


def backward(
    w: Grid, g: Tensor, x: Tensor, values: Tensor, scale: float = 1.0, transposed: bool = False
) -> tuple[Tensor, ...]:
    return grid_backward(g, x, values, w.kind, w.columns, scale, transposed)


def tokens_of(size: int) -> tuple[int, ...]:
    """The token counts tried at a size: all of them where that is cheap."""
    if size <= 97:
        return (0, 1, 2, 15, 16, 17, 33, 1000)
    return (0, 1, 15, 16, 33) if size <= 1024 else (1, 17)


def assert_matches_dense(w: Grid, dtype: torch.dtype, groups: int, all_tokens: tuple[int, ...]) -> None:
    """All products and gradients for some numbers of tokens."""
    values = w.values(groups, dtype)
    dense = w.matrices(values)
    outputs, inputs = dense.shape[1:]
    for tokens in all_tokens:
        x, g = w.tokens(groups, tokens, dtype)
        base = torch.randn(g.shape).to(dtype)
        x64, g64 = x.double(), g.double()
        y, x_gradient = x64 @ dense.mT, SCALE * g64 @ dense
        sums = w.pullback(SCALE * g64, x64)
        norm_x, norm_g, norm_w = (t.double().norm().item() for t in (x, g, dense))
        size_y, size_x = norm_x * norm_w / (groups * inputs) ** 0.5, SCALE * norm_g * norm_w / (groups * outputs) ** 0.5
        size_sums = SCALE * norm_g * norm_x / (groups * max(tokens, 1)) ** 0.5
        of = f"of {tokens} tokens"

        oracle.assert_close(product(w, x, values), y, f"y {of}", size_y)
        with_base = product(w, x, values, base, SCALE)
        oracle.assert_close(with_base, base.double() + SCALE * y, f"y with base {of}", SCALE * size_y)
        transposed = product(w, g, values, None, SCALE, True)
        oracle.assert_close(transposed, x_gradient, f"transposed y {of}", size_x)
        transposed = product(w, g, values, x, SCALE, True)
        oracle.assert_close(transposed, x64 + x_gradient, f"transposed y with base {of}", size_x)
        oracle.assert_close(pullback(w, g, x, SCALE), sums, f"pullback {of}", size_sums)
        got_x, got_values = backward(w, g, x, values, SCALE)
        oracle.assert_close(got_x, x_gradient, f"gradient of x {of}", size_x)
        oracle.assert_close(got_values, sums, f"gradient of the values {of}", size_sums)
        got_x, got_values = backward(w, x, g, values, SCALE, True)
        oracle.assert_close(got_x, SCALE * y, f"gradient of x, transposed, {of}", SCALE * size_y)
        oracle.assert_close(got_values, sums, f"gradient of the values, transposed, {of}", size_sums)


@cases("w, dtype", [*grids_in_turns([(size, size) for size in SIZES], DTYPES), *LARGE])
def test_product_and_gradients_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    assert_matches_dense(w, dtype, 1, tokens_of(w.columns))


@cases("w, dtype", grids_in_turns(RECTANGLES, DTYPES))
def test_rectangles_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    assert_matches_dense(w, dtype, 1, (0, 1, 5, 33))


@cases("w, dtype", grids_in_turns(BLOCKS, DTYPES))
def test_blocks_match_the_dense_matrix_in_every_group(w: Grid, dtype: torch.dtype) -> None:
    assert_matches_dense(w, dtype, 2, (0, 1, 5, 33))


@cases("w, dtype", grids_in_turns(SAMPLED_SIZES, DTYPES))
def test_large_matrices_match_sampled_rows(w: Grid, dtype: torch.dtype) -> None:
    values = w.values(1, dtype)
    one_block = values[0, 0, 0]
    i, j, some = (torch.randperm(size)[:64] for size in (w.rows, w.columns, len(one_block)))
    some_rows = oracle.entries(one_block, w.kind, i[:, None], torch.arange(w.columns), w.columns)
    some_columns = oracle.entries(one_block, w.kind, torch.arange(w.rows), j[:, None], w.columns)
    for tokens in (1, 3):
        x, g = w.tokens(1, tokens, dtype)
        base = torch.randn(g.shape).to(dtype)
        y = product(w, x, values, base, SCALE)
        oracle.assert_close(y[..., i], base[..., i].double() + SCALE * x.double() @ some_rows.T, "y")
        exact = SCALE * oracle.some_grid_sums(g[0], x[0], w.kind, some)
        x_gradient, gradient = backward(w, g, x, values, SCALE)
        oracle.assert_close(x_gradient[..., j], SCALE * g.double() @ some_columns.T, "gradient of x")
        oracle.assert_close(gradient[0, 0, 0, some], exact, "gradient of the values")
        y, gradient = backward(w, x, g, values, SCALE, True)
        oracle.assert_close(y[..., i], SCALE * x.double() @ some_rows.T, "gradient of x, transposed")
        oracle.assert_close(gradient[0, 0, 0, some], exact, "gradient of the values, transposed")


MIXED_SHAPES = ((65, 97), (97, 97), (768, 768), (5, 4, 2, 3), (128, 128, 3, 2))


@cases("w, dtype, groups", grids_in_turns(MIXED_SHAPES, oracle.SIXTEEN_BIT, (1, 2)))
def test_rows_of_16_bits_take_values_of_32_and_give_their_gradient_in_32(
    w: Grid, dtype: torch.dtype, groups: int
) -> None:
    values = w.values(groups)
    dense = w.matrices(values)
    for tokens in (0, 1, 17, 40):
        x, g = w.tokens(groups, tokens, dtype)
        x64, g64 = x.double(), g.double()
        y, x_gradient, sums = SCALE * x64 @ dense.mT, SCALE * g64 @ dense, w.pullback(SCALE * g64, x64)
        oracle.assert_close(product(w, x, values, g, SCALE), g64 + y, "y")
        oracle.assert_close(product(w, g, values, x, SCALE, True), x64 + x_gradient, "transposed y")
        for transposed, exact, rows in ((False, x_gradient, (g, x)), (True, y, (x, g))):
            got, gradient = backward(w, *rows, values, SCALE, transposed)
            assert (got.dtype, gradient.dtype) == (dtype, torch.float32)
            oracle.assert_close(got, exact, "gradient of x")
            oracle.assert_close(gradient, sums, "gradient of the values")


SPECTRUM_SHAPES = (
    *((1, 1), (1, 7), (5, 5), (17, 16), (34, 34), (34, 35), (64, 64), (64, 192), (68, 68), (97, 97), (97, 12)),
    *(
        (768, 768),
        (1000, 1000),
        (1000, 97),
        (5, 4, 2, 3),
        (64, 33, 3, 2),
        (128, 128, 6, 6),
        (97, 97, 1, 4),
        (1, 1, 2, 2),
    ),
)


@cases("w, transposed, wide", grids_in_turns(SPECTRUM_SHAPES, (False, True), (torch.float32, torch.float64)))
def test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(
    w: Grid, transposed: bool, wide: torch.dtype
) -> None:
    values = w.values(2, wide)
    dense = w.matrices(values)
    dense = dense.mT if transposed else dense
    spectrum = grid_spectrum(values, w.kind, w.columns, transposed)
    assert spectrum.dtype == wide
    blocks = (w.inputs, w.outputs, w.columns, w.rows) if transposed else w[1:]
    for tokens in (0, 1, 2, 17, 100):
        for dtype in (torch.float32, *oracle.SIXTEEN_BIT) if wide == torch.float32 else (torch.float64,):
            x, base = (torch.randn(2, tokens, count).to(dtype) for count in (dense.shape[2], dense.shape[1]))
            y = grid_by_spectrum(x, spectrum, base, w.kind, *blocks, SCALE)
            size = SCALE * x.double().norm().item() * dense.norm().item() / (2 * dense.shape[2]) ** 0.5
            oracle.assert_close(y, base.double() + SCALE * x.double() @ dense.mT, f"y of {tokens} {dtype} tokens", size)
            assert torch.equal(y, product(w, x, values, base, SCALE, transposed))


@cases("w, dtype", grids_in_turns([(29, 20, 2, 1)], DTYPES))
def test_a_spectrum_is_kept_in_the_type_of_the_arithmetic(w: Grid, dtype: torch.dtype) -> None:
    values = w.values(1, dtype)
    wide = values.to(torch.promote_types(dtype, torch.float32))
    spectrum = grid_spectrum(values, w.kind, 20, True)
    assert spectrum.dtype == wide.dtype
    assert torch.equal(spectrum, grid_spectrum(wide, w.kind, 20, True))


@kind_cases
def test_a_spectrum_is_refused_where_it_does_not_fit(kind: int) -> None:
    w = grid_of(kind, 40, 50, 2, 1)
    x, spectrum = torch.randn(1, 3, 50), grid_spectrum(w.values(), kind, 50, False)
    assert grid_by_spectrum(x, spectrum, None, *w, 1.0).shape == (1, 3, 2 * w.rows)
    with pytest.raises(RuntimeError, match="float64 where x is"):
        grid_by_spectrum(x.double(), spectrum, None, *w, 1.0)
    with pytest.raises(RuntimeError):
        grid_by_spectrum(x, spectrum, None, *w._replace(outputs=3), 1.0)
    with pytest.raises(RuntimeError):
        grid_by_spectrum(x, spectrum, None, *w._replace(columns=25), 1.0)


@either_kind
def test_keeping_a_spectrum_passes_opcheck(kind: int) -> None:
    w = grid_of(kind, 4, 5, 2, 3)
    values, (x, base) = w.values(2), w.tokens(2, 3)
    opcheck(torch.ops.surm_kernels.grid_spectrum.default, (values, kind, 5, False))
    spectrum = grid_spectrum(values, kind, 5, False)
    opcheck(torch.ops.surm_kernels.grid_by_spectrum.default, (x, spectrum, base, *w, 0.7))


@settings(max_examples=80)
@given(
    kind=st.sampled_from(EVERY_KIND),
    blocks=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4)),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 40),
    scale=st.floats(-4, 4, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_product_transpose_and_pullback_are_adjoint_to_each_other(kind, blocks, groups, tokens, scale, seed) -> None:
    torch.manual_seed(seed)
    w = grid_of(kind, *blocks)
    values, (x, g) = w.values(groups, torch.float64), w.tokens(groups, tokens, torch.float64)
    form = (g * product(w, x, values, None, scale)).sum()
    size = abs(scale) * (g.norm() * x.norm() * values.norm()).item() * min(w.rows, w.columns) ** 0.5
    assert abs(form - (x * product(w, g, values, None, scale, True)).sum()) <= 1e-14 * size
    assert abs(form - (values * pullback(w, g, x, scale)).sum()) <= 1e-14 * size
    assert abs(form - scale * (g.mT @ x * grid_dense(values, kind, w.columns)).sum()) <= 1e-14 * size


def everything(w: Grid, x: Tensor, g: Tensor, base: Tensor, values: Tensor) -> list[Tensor]:
    """All products and gradients."""
    return [
        product(w, x, values, base, SCALE),
        product(w, g, values, None, SCALE, True),
        pullback(w, g, x, SCALE),
        *backward(w, g, x, values, SCALE),
        *backward(w, x, g, values, SCALE, True),
    ]


@cases("w, dtype, tokens", kinds_and_types_in_turns([(14, 20, 2, 3)], (1, 7, 40)))
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(
    w: Grid, dtype: torch.dtype, tokens: int
) -> None:
    values = torch.cat([w.values(2, dtype)] * 2, -1).transpose(1, 2).contiguous().transpose(1, 2)[..., ::2]
    for make in LAYOUTS.values():
        strided = [make(tokens, n, dtype) for n in (3 * w.columns, 2 * w.rows, 2 * w.rows)] + [values]
        got = everything(w, *strided)
        wanted = everything(w, *(t.clone(memory_format=torch.contiguous_format) for t in strided))
        assert all(t.is_contiguous() for t in got)
        assert all(map(torch.equal, got, wanted))


@kind_cases
def test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input(kind: int) -> None:
    w = grid_of(kind, 8, 8)
    values, x, base = w.values(), torch.zeros(1, 3, 8), torch.randn(1, 3, 8)
    one = torch.ones(1, 1, 1, 1)
    outputs = [
        *everything(w, x, base, base, values),
        grid_dense(one, kind, 1),
        grid_dense_adjoint(one[0], kind, 1, 1),
    ]
    inputs = {t.untyped_storage().data_ptr() for t in (x, base, values, one)}
    assert all(t.untyped_storage().data_ptr() not in inputs for t in outputs)
    assert all(t.is_contiguous() for t in outputs)


ROW_SHAPES = ((64, 64), (97, 97), (768, 768), (1000, 1000), (97, 1000), (1000, 97))
row_cases = cases("w, tokens", grids_in_turns(ROW_SHAPES, (2, 3, 16, 33)))


@row_cases
def test_each_row_is_as_accurate_as_its_own_size_allows(w: Grid, tokens: int) -> None:
    values = w.values()
    (dense,) = w.matrices(values)
    magnitude = 10 ** torch.linspace(-4, 4, tokens)[torch.randperm(tokens)]
    alternating = torch.where(torch.arange(tokens) % 2 == 0, 1.0, 1e4)
    for scales in (magnitude, alternating, alternating.flip(0)):
        x, g = (rows * scales[:, None] for rows in w.tokens(1, tokens))
        oracle.assert_rows_close(product(w, x, values), x.double() @ dense.T, "y")
        oracle.assert_rows_close(backward(w, g, x, values)[0], g.double() @ dense, "gradient of x")
        transposed, _ = backward(w, x, g, values, transposed=True)
        oracle.assert_rows_close(transposed, x.double() @ dense.T, "gradient of x, transposed")


@cases("w, tokens", [(grid_of(CIRCULANT, 4096, 4096), 33), (grid_of(SKEW_CIRCULANT, 4096, 4096), 3)])
def test_each_row_of_a_large_product_is_as_accurate_as_its_own_size_allows(w: Grid, tokens: int) -> None:
    test_each_row_is_as_accurate_as_its_own_size_allows(w, tokens)


@kind_cases
def test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy(kind: int) -> None:
    w = grid_of(kind, 768, 768)
    values = w.values() / 64
    x = torch.randn(1, 8, 768) * 2.0 ** torch.tensor([120, -100, 0, 118, -90, 60, -60, 100])[:, None]
    oracle.assert_rows_close(product(w, x, values), x.double() @ w.matrices(values).mT)


@row_cases
def test_zero_rows_give_exact_zeros_beside_any_neighbour(w: Grid, tokens: int) -> None:
    values = w.values()
    x, g = (1e4 * rows for rows in w.tokens(1, tokens))
    x[:, ::2], g[:, ::2] = 0, 0
    y = product(w, x, values)
    assert (y[:, ::2] == 0).all()
    assert (y[:, 1::2] != 0).any(-1).all()
    x_gradient, gradient = backward(w, g, torch.zeros_like(x), values)
    assert (x_gradient[:, ::2] == 0).all()
    assert (gradient == 0).all()
    assert (pullback(w, torch.zeros_like(g), x) == 0).all()


BROKEN_SHAPES = ((97, 97), (192, 768), (768, 768), (20, 64, 2, 3))


@cases("w, dtype", kinds_and_types_in_turns(BROKEN_SHAPES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(w: Grid, dtype: torch.dtype, bad: float) -> None:
    values = w.values(1, dtype)
    for tokens in (1, 2, 5, 33):
        x, g = w.tokens(1, tokens, dtype)
        row = tokens // 2
        others = torch.arange(tokens) != row
        broken_x, broken_g = x.clone(), g.clone()
        broken_x[:, row, -1], broken_g[:, row, 3] = bad, bad
        x[:, row], g[:, row] = 0, 0

        y = product(w, broken_x, values)
        assert y[:, row].isnan().all()
        assert torch.equal(y[:, others], product(w, x, values)[:, others])
        for cotangents, rows, broken_cotangents, broken_rows, transposed in (
            (g, x, broken_g, broken_x, False),
            (x, g, broken_x, broken_g, True),
        ):
            x_gradient, gradient = backward(w, broken_cotangents, rows, values, transposed=transposed)
            assert x_gradient[:, row].isnan().all()
            finite, _ = backward(w, cotangents, rows, values, transposed=transposed)
            assert torch.equal(x_gradient[:, others], finite[:, others])
            assert gradient.isnan().any()
            x_gradient, gradient = backward(w, cotangents, broken_rows, values, transposed=transposed)
            assert x_gradient.isfinite().all()
            assert gradient.isnan().any()


SHAPES_AND_TOKENS = (
    *(((768, 768), 300), ((768, 768), 7), ((97, 97), 1000), ((97, 1000), 200), ((4096, 4096), 65), ((3072, 768), 65)),
    *(((128, 128, 6, 6), 200), ((5, 4, 2, 3), 33)),
)
THREADED = [
    (grid_of(kind, *shape), tokens, dtype)
    for (shape, tokens), kind, dtype in in_turns(SHAPES_AND_TOKENS, EVERY_KIND, (torch.float32, torch.bfloat16))
]


@cases("w, tokens, dtype", THREADED)
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_every_run(
    w: Grid, tokens: int, dtype: torch.dtype, threads
) -> None:
    values, (x, g) = w.values(1, dtype), w.tokens(1, tokens, dtype)
    threads(1)
    wanted = everything(w, x, g, g, values)
    assert all(map(torch.equal, everything(w, x, g, g, values), wanted))
    # torch.fft and even torch.mul of complex numbers round by how threads share the work, so the reference repeats
    # itself for one number of threads only.
    for count in (2, 3, 1) if _extension.available else (1,):
        threads(count)
        assert all(map(torch.equal, everything(w, x, g, g, values), wanted))
