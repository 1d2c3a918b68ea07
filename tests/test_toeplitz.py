"""The Toeplitz and Hankel operators against the dense float64 matrix, row by row, for every size and layout that hurts.

Their dense matrices are tested in test_toeplitz_dense.py.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from surm_kernels.ops.toeplitz import (
    toeplitz,
    toeplitz_backward,
    toeplitz_by_spectrum,
    toeplitz_dense_adjoint,
    toeplitz_pullback,
    toeplitz_spectrum,
)
from torch import Tensor
from torch.library import opcheck

from surm_kernels import _extension
from tests import oracle

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024, 1536, 3072, 4096)
SAMPLED_SIZES = ((4608, 4608), (11008, 11008), (14336, 14336), (4096, 11008), (11008, 4096))
RECTANGLES = (
    *((5, 3), (3, 5), (1, 7), (7, 1), (1, 97), (97, 1), (2, 63), (16, 15), (15, 16), (64, 192), (192, 64)),
    *((97, 1000), (1000, 97), (12, 1024), (1024, 12), (768, 3072), (3072, 768), (2048, 300)),
)
GRIDS = ((2, 3, 5, 5), (3, 2, 64, 33), (6, 6, 128, 128), (1, 4, 97, 12), (4, 1, 12, 97), (2, 2, 1, 1), (3, 5, 1, 2))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75

reflected_cases = pytest.mark.parametrize("reflected", [False, True], ids=["toeplitz", "hankel"])
dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def name_of(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def matrix(t: Tensor, columns: int, reflected: bool) -> Tensor:
    """The float64 matrix of one group."""
    return oracle.hankel(t, columns) if reflected else oracle.toeplitz(t, columns)


def diagonal_sums(w: Tensor, rows: int, columns: int, reflected: bool) -> Tensor:
    """The gradient of <w, matrix> for one group: sums over the diagonals of each block, antidiagonals if reflected."""
    blocks = w.reshape(w.shape[0] // rows, rows, w.shape[1] // columns, columns).transpose(1, 2)
    # Rows longer by m, read one entry shorter than that, shift row i by i: antidiagonals become columns.
    sheared = torch.nn.functional.pad(blocks if reflected else blocks.flip(-1), (0, rows)).flatten(-2)[..., :-rows]
    return sheared.unflatten(-1, (rows, rows + columns - 1)).sum(-2)


def tokens_of(size: int) -> tuple[int, ...]:
    """The token counts tried at a size: all of them where that is cheap."""
    if size <= 97:
        return (0, 1, 2, 15, 16, 17, 33, 1000)
    return (0, 1, 16, 33) if size <= 1024 else (1, 17)


def assert_matches_dense(t: Tensor, rows: int, columns: int, all_tokens: tuple[int, ...], reflected: bool) -> None:
    """All products and gradients at t for some numbers of tokens."""
    groups, out_blocks, in_blocks, length = t.shape
    dense = torch.stack([matrix(group, columns, reflected) for group in t])
    for tokens in all_tokens:
        x = torch.randn(groups, tokens, in_blocks * columns).to(t.dtype)
        g, base = (torch.randn(groups, tokens, out_blocks * rows).to(t.dtype) for _ in range(2))
        x64, g64 = x.double(), g.double()
        y, x_gradient = x64 @ dense.mT, SCALE * g64 @ dense
        t_gradient = SCALE * torch.stack([diagonal_sums(w, rows, columns, reflected) for w in g64.mT @ x64])
        norm_x, norm_g, norm_t = (tensor.double().norm().item() for tensor in (x, g, t))
        size_y = norm_x * norm_t * (rows / (groups * in_blocks * length)) ** 0.5
        size_x = SCALE * norm_g * norm_t * (columns / (groups * out_blocks * length)) ** 0.5
        size_t = SCALE * norm_g * norm_x / (groups * max(tokens, 1)) ** 0.5

        product = toeplitz(x, t, None, columns, 1.0, False, reflected)
        oracle.assert_close(product, y, f"y of {tokens} tokens", size_y)
        with_base = toeplitz(x, t, base, columns, SCALE, False, reflected)
        oracle.assert_close(with_base, base.double() + SCALE * y, f"y with base of {tokens} tokens", SCALE * size_y)
        transposed = toeplitz(g, t, x, columns, SCALE, True, reflected)
        oracle.assert_close(transposed, x64 + x_gradient, f"transposed y of {tokens} tokens", size_x)
        pullback = toeplitz_pullback(g, x, rows, columns, SCALE, reflected)
        oracle.assert_close(pullback, t_gradient, f"pullback of {tokens} tokens", size_t)
        got_x, got_t = toeplitz_backward(g, x, t, columns, SCALE, reflected)
        oracle.assert_close(got_x, x_gradient, f"gradient of x of {tokens} tokens", size_x)
        oracle.assert_close(got_t, t_gradient, f"gradient of t of {tokens} tokens", size_t)


@pytest.mark.parametrize(
    ("size", "dtype", "reflected"),
    [
        (size, dtype, reflected)
        for size in SIZES
        for dtype in DTYPES
        for reflected in (False, True)
        # Toeplitz and Hankel matrices take turns where they are large.
        if size <= 1024 or (SIZES.index(size) + DTYPES.index(dtype)) % 2 == reflected
    ],
)
def test_product_and_gradients_match_the_dense_matrix(size: int, dtype: torch.dtype, reflected: bool) -> None:
    t = torch.randn(1, 1, 1, 2 * size - 1).to(dtype)
    assert_matches_dense(t, size, size, tokens_of(size), reflected)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("shape", RECTANGLES, ids=name_of)
def test_rectangles_match_the_dense_matrix(shape: tuple[int, int], dtype: torch.dtype, reflected: bool) -> None:
    rows, columns = shape
    t = torch.randn(1, 1, 1, rows + columns - 1).to(dtype)
    assert_matches_dense(t, rows, columns, (0, 1, 5, 33), reflected)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_blocks_match_the_dense_matrix_in_every_group(
    grid: tuple[int, int, int, int], dtype: torch.dtype, reflected: bool
) -> None:
    out_blocks, in_blocks, rows, columns = grid
    t = torch.randn(2, out_blocks, in_blocks, rows + columns - 1).to(dtype)
    assert_matches_dense(t, rows, columns, (0, 1, 5, 33), reflected)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("shape", SAMPLED_SIZES, ids=name_of)
def test_large_matrices_match_sampled_rows(shape: tuple[int, int], dtype: torch.dtype, reflected: bool) -> None:
    rows, columns = shape
    t = torch.randn(rows + columns - 1).to(dtype)
    i, j, diagonals = (torch.randperm(size)[:64] for size in (rows, columns, len(t)))
    all_i, all_j = torch.arange(rows), torch.arange(columns)
    some_rows = t.double()[i[:, None] + all_j if reflected else i[:, None] - all_j + columns - 1]
    some_columns = t.double()[all_i + j[:, None] if reflected else all_i - j[:, None] + columns - 1]
    for tokens in (1, 3):
        x, g, base = (torch.randn(1, tokens, width).to(dtype) for width in (columns, rows, rows))
        y = toeplitz(x, t.view(1, 1, 1, -1), base, columns, SCALE, False, reflected)
        oracle.assert_close(y[..., i], base[..., i].double() + SCALE * x.double() @ some_rows.T, "y")
        x_gradient, t_gradient = toeplitz_backward(g, x, t.view(1, 1, 1, -1), columns, SCALE, reflected)
        oracle.assert_close(x_gradient[..., j], SCALE * g.double() @ some_columns.T, "gradient of x")
        # Entry k of the gradient sums g[i] x[j] over i + j = k for Hankel, over i - j + n - 1 = k for Toeplitz.
        padded = torch.nn.functional.pad(g[0].double(), (columns - 1, columns - 1)).unfold(1, columns, 1)
        x_in_window = x[0].double().flip(-1) if reflected else x[0].double()
        exact = SCALE * torch.einsum("tkj,tj->k", padded[:, diagonals], x_in_window)
        oracle.assert_close(t_gradient[0, 0, 0, diagonals], exact, "gradient of t")


@reflected_cases
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, *sizes) for sizes in ((1, 1), (1, 7), (17, 16), (34, 35), (64, 192), (97, 12), (768, 768), (1000, 97))]
    + [(2, 3, 5, 4), (3, 2, 64, 33), (6, 6, 128, 128), (2, 2, 1, 1)],
    ids=name_of,
)
def test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(
    sizes: tuple[int, int, int, int], wide: torch.dtype, transposed: bool, reflected: bool
) -> None:
    out_blocks, in_blocks, rows, columns = sizes
    t = torch.randn(2, out_blocks, in_blocks, rows + columns - 1, dtype=wide)
    dense = torch.stack([matrix(group, columns, reflected) for group in t])
    dense = dense.mT if transposed else dense
    spectrum = toeplitz_spectrum(t, columns, transposed, reflected)
    assert spectrum.dtype == wide
    blocks = (in_blocks, out_blocks, columns, rows) if transposed else sizes
    for tokens in (0, 1, 2, 17, 100):
        for dtype in (torch.float32, *oracle.SIXTEEN_BIT) if wide == torch.float32 else (torch.float64,):
            x, base = (torch.randn(2, tokens, count).to(dtype) for count in (dense.shape[2], dense.shape[1]))
            y = toeplitz_by_spectrum(x, spectrum, base, *blocks, SCALE, reflected)
            size = SCALE * x.double().norm().item() * dense.norm().item() / dense.shape[2] ** 0.5
            oracle.assert_close(y, base.double() + SCALE * x.double() @ dense.mT, f"y of {tokens} {dtype} tokens", size)
            assert torch.equal(y, toeplitz(x, t, base, columns, SCALE, transposed, reflected))


@dtype_cases
def test_a_spectrum_is_kept_in_the_type_of_the_arithmetic(dtype: torch.dtype) -> None:
    t = torch.randn(1, 2, 1, 48).to(dtype)
    wide = t.to(torch.promote_types(dtype, torch.float32))
    assert torch.equal(toeplitz_spectrum(t, 20, True, False), toeplitz_spectrum(wide, 20, True, False))


def test_a_spectrum_is_refused_where_it_does_not_fit() -> None:
    x, spectrum = torch.randn(1, 3, 50), toeplitz_spectrum(torch.randn(1, 2, 1, 89), 50, False, False)
    assert toeplitz_by_spectrum(x, spectrum, None, 2, 1, 40, 50, 1.0, False).shape == (1, 3, 80)
    with pytest.raises(RuntimeError, match="float64 where x is"):
        toeplitz_by_spectrum(x.double(), spectrum, None, 2, 1, 40, 50, 1.0, False)
    with pytest.raises(RuntimeError):
        toeplitz_by_spectrum(x, spectrum, None, 3, 1, 40, 50, 1.0, False)
    with pytest.raises(RuntimeError):
        toeplitz_by_spectrum(x, spectrum, None, 2, 1, 40, 25, 1.0, False)


@reflected_cases
def test_keeping_a_spectrum_passes_opcheck(reflected: bool) -> None:
    x, t, base = torch.randn(2, 3, 15), torch.randn(2, 2, 3, 8), torch.randn(2, 3, 8)
    opcheck(torch.ops.surm_kernels.toeplitz_spectrum.default, (t, 5, False, reflected))
    spectrum = toeplitz_spectrum(t, 5, False, reflected)
    opcheck(torch.ops.surm_kernels.toeplitz_by_spectrum.default, (x, spectrum, base, 2, 3, 4, 5, 0.7, reflected))


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 40),
    reflected=st.booleans(),
    scale=st.floats(-4, 4, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_product_transpose_and_pullback_are_adjoint_to_each_other(grid, groups, tokens, reflected, scale, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    out_blocks, in_blocks, rows, columns = grid
    t, x, g = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (
            (groups, out_blocks, in_blocks, rows + columns - 1),
            (groups, tokens, in_blocks * columns),
            (groups, tokens, out_blocks * rows),
        )
    )
    product = (g * toeplitz(x, t, None, columns, scale, False, reflected)).sum()
    size = abs(scale) * (g.norm() * x.norm() * t.norm()).item() * min(rows, columns) ** 0.5
    transposed = toeplitz(g, t, None, columns, scale, True, reflected)
    assert abs(product - (x * transposed).sum()) <= 1e-14 * size
    assert abs(product - (t * toeplitz_pullback(g, x, rows, columns, scale, reflected)).sum()) <= 1e-14 * size


LAYOUTS = {
    "every other token": lambda tokens, n, dtype: torch.randn(2, 2 * tokens, n).to(dtype)[:, ::2],
    "part of a wider row": lambda tokens, n, dtype: torch.randn(2, tokens, n + 3).to(dtype)[..., 1:-2],
    "every other entry": lambda tokens, n, dtype: torch.randn(2, tokens, 2 * n).to(dtype)[..., ::2],
    "transposed": lambda tokens, n, dtype: torch.randn(2, n, tokens).to(dtype).mT,
    "groups inside tokens": lambda tokens, n, dtype: torch.randn(tokens, 2, n).to(dtype).transpose(0, 1),
    "one token for all": lambda tokens, n, dtype: torch.randn(2, 1, n).to(dtype).expand(2, tokens, n),
    "one group for all": lambda tokens, n, dtype: torch.randn(1, tokens, n).to(dtype).expand(2, tokens, n),
    "one number for all": lambda tokens, n, dtype: torch.randn(1, 1, 1).to(dtype).expand(2, tokens, n),
}


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(
    tokens: int, dtype: torch.dtype, reflected: bool
) -> None:
    out_blocks, in_blocks, rows, columns = 2, 3, 20, 14
    t = torch.randn(2, in_blocks, out_blocks, 2 * (rows + columns - 1)).to(dtype).transpose(1, 2)[..., ::2]
    for make in LAYOUTS.values():
        x, g, base = (make(tokens, n, dtype) for n in (in_blocks * columns, out_blocks * rows, out_blocks * rows))
        plain_x, plain_g, plain_base, plain_t = (
            tensor.clone(memory_format=torch.contiguous_format) for tensor in (x, g, base, t)
        )
        got = [
            toeplitz(x, t, base, columns, SCALE, False, reflected),
            toeplitz(g, t, None, columns, SCALE, True, reflected),
            toeplitz_pullback(g, x, rows, columns, SCALE, reflected),
            *toeplitz_backward(g, x, t, columns, SCALE, reflected),
        ]
        wanted = [
            toeplitz(plain_x, plain_t, plain_base, columns, SCALE, False, reflected),
            toeplitz(plain_g, plain_t, None, columns, SCALE, True, reflected),
            toeplitz_pullback(plain_g, plain_x, rows, columns, SCALE, reflected),
            *toeplitz_backward(plain_g, plain_x, plain_t, columns, SCALE, reflected),
        ]
        assert all(tensor.is_contiguous() for tensor in got)
        assert all(map(torch.equal, got, wanted))


def test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input() -> None:
    x, base, t = torch.zeros(1, 3, 8), torch.randn(1, 3, 8), torch.zeros(1, 1, 1, 15)
    t[..., 7] = 1
    inputs = {tensor.untyped_storage().data_ptr() for tensor in (x, base, t)}
    outputs = [
        toeplitz(x, t, base, 8, 1.0, False, False),
        toeplitz_pullback(x, base, 8, 8, 1.0, False),
        *toeplitz_backward(x, base, t, 8, 1.0, False),
    ]
    assert all(tensor.untyped_storage().data_ptr() not in inputs for tensor in outputs)
    assert all(tensor.is_contiguous() for tensor in outputs)


row_shapes = pytest.mark.parametrize("shape", [(64, 64), (97, 97), (768, 768), (97, 1000), (1000, 97)], ids=name_of)
row_tokens = pytest.mark.parametrize("tokens", [2, 3, 16, 33])


@reflected_cases
@row_shapes
@row_tokens
def test_each_row_is_as_accurate_as_its_own_size_allows(tokens: int, shape: tuple[int, int], reflected: bool) -> None:
    rows, columns = shape
    t = torch.randn(1, 1, 1, rows + columns - 1)
    dense = matrix(t[0], columns, reflected)
    magnitude = 10 ** torch.linspace(-4, 4, tokens)[torch.randperm(tokens)]
    alternating = torch.where(torch.arange(tokens) % 2 == 0, 1.0, 1e4)
    for scales in (magnitude, alternating, alternating.flip(0)):
        x, g = (torch.randn(1, tokens, width) * scales[:, None] for width in (columns, rows))
        y = toeplitz(x, t, None, columns, 1.0, False, reflected)
        oracle.assert_rows_close(y, x.double() @ dense.T, "y")
        x_gradient, _ = toeplitz_backward(g, x, t, columns, 1.0, reflected)
        oracle.assert_rows_close(x_gradient, g.double() @ dense, "gradient of x")


@reflected_cases
def test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy(reflected: bool) -> None:
    t = torch.randn(1, 1, 1, 1535) / 64
    x = torch.randn(1, 8, 768) * 2.0 ** torch.tensor([120, -100, 0, 118, -90, 60, -60, 100])[:, None]
    y = toeplitz(x, t, None, 768, 1.0, False, reflected)
    oracle.assert_rows_close(y, x.double() @ matrix(t[0], 768, reflected).T)


@reflected_cases
@row_shapes
@row_tokens
def test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens: int, shape: tuple[int, int], reflected: bool) -> None:
    rows, columns = shape
    t = torch.randn(1, 1, 1, rows + columns - 1)
    x, g = torch.randn(1, tokens, columns) * 1e4, torch.randn(1, tokens, rows) * 1e4
    x[:, ::2], g[:, ::2] = 0, 0
    y = toeplitz(x, t, None, columns, 1.0, False, reflected)
    assert (y[:, ::2] == 0).all()
    assert (y[:, 1::2] != 0).any(-1).all()
    x_gradient, t_gradient = toeplitz_backward(g, torch.zeros_like(x), t, columns, 1.0, reflected)
    assert (x_gradient[:, ::2] == 0).all()
    assert (t_gradient == 0).all()
    assert (toeplitz_pullback(torch.zeros_like(g), x, rows, columns, 1.0, reflected) == 0).all()


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grid", [(1, 1, 97, 97), (1, 1, 768, 192), (2, 3, 64, 20)], ids=name_of)
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(
    grid: tuple[int, int, int, int], bad: float, dtype: torch.dtype, reflected: bool
) -> None:
    out_blocks, in_blocks, rows, columns = grid
    t = torch.randn(1, out_blocks, in_blocks, rows + columns - 1).to(dtype)
    for tokens in (1, 2, 5, 33):
        x = torch.randn(1, tokens, in_blocks * columns).to(dtype)
        g = torch.randn(1, tokens, out_blocks * rows).to(dtype)
        row = tokens // 2
        others = torch.arange(tokens) != row
        broken_x, broken_g = x.clone(), g.clone()
        broken_x[:, row, -1], broken_g[:, row, 3] = bad, bad
        x[:, row], g[:, row] = 0, 0

        y = toeplitz(broken_x, t, None, columns, 1.0, False, reflected)
        assert y[:, row].isnan().all()
        assert torch.equal(y[:, others], toeplitz(x, t, None, columns, 1.0, False, reflected)[:, others])
        x_gradient, t_gradient = toeplitz_backward(broken_g, x, t, columns, 1.0, reflected)
        assert x_gradient[:, row].isnan().all()
        assert torch.equal(x_gradient[:, others], toeplitz_backward(g, x, t, columns, 1.0, reflected)[0][:, others])
        assert t_gradient.isnan().any()
        x_gradient, t_gradient = toeplitz_backward(g, broken_x, t, columns, 1.0, reflected)
        assert x_gradient.isfinite().all()
        assert t_gradient.isnan().any()


thread_cases = pytest.mark.parametrize(
    ("grid", "tokens"),
    [
        ((1, 1, 768, 768), 300),
        ((1, 1, 768, 768), 7),
        ((1, 1, 97, 1000), 200),
        ((1, 1, 3072, 768), 65),
        ((6, 6, 128, 128), 200),
        ((2, 3, 5, 4), 33),
    ],
    ids=lambda case: name_of(case) if isinstance(case, tuple) else f"{case} tokens",
)


@reflected_cases
@thread_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_every_run(
    grid: tuple[int, int, int, int], tokens: int, dtype: torch.dtype, reflected: bool, threads
) -> None:
    out_blocks, in_blocks, rows, columns = grid
    t, x, g = (
        torch.randn(shape).to(dtype)
        for shape in (
            (1, out_blocks, in_blocks, rows + columns - 1),
            (1, tokens, in_blocks * columns),
            (1, tokens, out_blocks * rows),
        )
    )

    def everything() -> list[Tensor]:
        return [
            toeplitz(x, t, g, columns, SCALE, False, reflected),
            toeplitz(g, t, None, columns, SCALE, True, reflected),
            toeplitz_pullback(g, x, rows, columns, SCALE, reflected),
            *toeplitz_backward(g, x, t, columns, SCALE, reflected),
        ]

    threads(1)
    wanted = everything()
    assert all(map(torch.equal, everything(), wanted))
    # The rounding of torch.fft depends on how threads share the work, so the reference repeats itself for one number
    # of threads only.
    for count in (2, 3, 1) if _extension.available else (1,):
        threads(count)
        assert all(map(torch.equal, everything(), wanted))


@reflected_cases
@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=["bfloat16", "float16"])
def test_rows_of_16_bits_take_diagonals_of_32_and_give_their_gradient_in_32(
    dtype: torch.dtype, reflected: bool
) -> None:
    rows, columns, tokens = 65, 97, 17
    t = torch.randn(1, 1, 1, rows + columns - 1)
    x, g = torch.randn(1, tokens, columns).to(dtype), torch.randn(1, tokens, rows).to(dtype)
    dense = oracle.hankel(t[0, 0, 0], columns) if reflected else oracle.toeplitz(t[0, 0, 0], columns)
    y = toeplitz(x, t, None, columns, 1.0, False, reflected)
    assert y.dtype == dtype
    oracle.assert_close(y, x.double() @ dense.T)
    x_gradient, t_gradient = toeplitz_backward(g, x, t, columns, 1.0, reflected)
    assert (x_gradient.dtype, t_gradient.dtype) == (dtype, torch.float32)
    oracle.assert_close(x_gradient, g.double() @ dense)
    sums = toeplitz_dense_adjoint(g.double().mT @ x.double(), rows, columns, reflected)
    oracle.assert_close(t_gradient, sums)
