"""The krylov operators against the dense float64 matrix, row by row, for every size and layout that hurts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from surm_kernels.ops.krylov import (
    krylov,
    krylov_backward,
    krylov_by_spectrum,
    krylov_dense,
    krylov_dense_adjoint,
    krylov_merge,
    krylov_pullback,
    krylov_spectrum,
)
from torch import Tensor
from torch.library import opcheck

from surm_kernels import _extension
from tests import oracle

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024, 1536, 3072, 4096, 4608, 11008, 13824, 14336)
SAMPLED_ABOVE = 4096
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75

sign_cases = pytest.mark.parametrize("sign", [1, -1], ids=["circulant", "skew"])
dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def tokens_of(size: int) -> tuple[int, ...]:
    """The token counts tried at a size: all of them where that is cheap."""
    if size <= 97:
        return (0, 1, 2, 15, 16, 17, 33, 1000)
    if size <= 1024:
        return (0, 1, 15, 16, 33)
    return (1, 17) if size <= SAMPLED_ABOVE else (1, 3)


@pytest.mark.parametrize(
    ("size", "dtype", "sign"),
    [
        (size, dtype, sign)
        for size in SIZES
        for dtype in DTYPES
        for sign in (1, -1)
        # Signs take turns where the matrix is large.
        if size <= 1024 or (size <= SAMPLED_ABOVE and (SIZES.index(size) + DTYPES.index(dtype)) % 2 == (sign > 0))
    ],
)
def test_product_and_gradients_match_the_dense_matrix(size: int, dtype: torch.dtype, sign: int) -> None:
    v = torch.randn(1, 1, 1, size).to(dtype)
    dense = oracle.matrix(v[0], sign)
    for tokens in tokens_of(size):
        x, g, base = (torch.randn(1, tokens, size).to(dtype) for _ in range(3))
        assert_matches(dense, x, v, g, base, sign)


@sign_cases
@dtype_cases
@pytest.mark.parametrize("size", [size for size in SIZES if size > SAMPLED_ABOVE])
def test_product_and_gradients_match_sampled_rows_of_a_large_matrix(size: int, dtype: torch.dtype, sign: int) -> None:
    v = torch.randn(1, 1, 1, size).to(dtype)
    sample = torch.randperm(size)[:64]
    rows, columns = oracle.matrix_rows(v[0, 0, 0], sign, sample), oracle.matrix_columns(v[0, 0, 0], sign, sample)
    for tokens in tokens_of(size):
        x, g, base = (torch.randn(1, tokens, size).to(dtype) for _ in range(3))
        y = krylov(x, v, base, sign, SCALE, False)
        oracle.assert_close(y[..., sample], base[..., sample].double() + SCALE * x.double() @ rows.T, "y")
        x_gradient, v_gradient = krylov_backward(g, x, v, sign, SCALE, False)
        oracle.assert_close(x_gradient[..., sample], SCALE * g.double() @ columns.T, "gradient of x")
        exact = SCALE * oracle.some_diagonal_sums(g[0], x[0], sign, sample)
        oracle.assert_close(v_gradient[0, 0, 0, sample], exact, "gradient of v")


@sign_cases
@dtype_cases
@pytest.mark.parametrize(
    "blocks",
    [(2, 3, 5), (3, 2, 64), (6, 6, 128), (1, 4, 97), (4, 1, 63), (2, 2, 1), (12, 3, 12), (3, 1, 200), (1, 2, 2)],
    ids=lambda blocks: "x".join(map(str, blocks)),
)
def test_blocks_match_the_dense_matrix_in_every_group(
    blocks: tuple[int, int, int], dtype: torch.dtype, sign: int
) -> None:
    outputs, inputs, block = blocks
    v = torch.randn(2, *blocks).to(dtype)
    for tokens in (0, 1, 5, 33):
        x = torch.randn(2, tokens, inputs * block).to(dtype)
        g, base = (torch.randn(2, tokens, outputs * block).to(dtype) for _ in range(2))
        dense = torch.stack([oracle.matrix(group, sign) for group in v])
        assert_matches(dense, x, v, g, base, sign)


def assert_matches(dense: Tensor, x: Tensor, v: Tensor, g: Tensor, base: Tensor, sign: int) -> None:
    """All products and gradients at v, whose float64 matrices are `dense`; base and g have the output's shape."""
    outputs, inputs, block = v.shape[1:]
    x64, g64 = x.double(), g.double()
    y = x64 @ dense.mT
    x_gradient = SCALE * g64 @ dense
    v_gradient = torch.stack([SCALE * oracle.diagonal_sums(w, block, sign) for w in g64.mT @ x64])
    norm_x, norm_g, norm_v = (t.double().norm().item() for t in (x, g, v))
    size_y, size_x = norm_x * norm_v / inputs**0.5, SCALE * norm_g * norm_v / outputs**0.5
    size_v = SCALE * norm_g * norm_x / max(x.shape[1], 1) ** 0.5

    oracle.assert_close(krylov(x, v, None, sign, 1.0, False), y, "y", size_y)
    with_base = krylov(x, v, base, sign, SCALE, False)
    oracle.assert_close(with_base, base.double() + SCALE * y, "y with base", SCALE * size_y)
    oracle.assert_close(krylov(g, v, None, sign, SCALE, True), x_gradient, "transposed y", size_x)
    oracle.assert_close(krylov_pullback(g, x, block, sign, SCALE), v_gradient, "pullback", size_v)
    got_x, got_v = krylov_backward(g, x, v, sign, SCALE, False)
    oracle.assert_close(got_x, x_gradient, "gradient of x", size_x)
    oracle.assert_close(got_v, v_gradient, "gradient of v", size_v)
    got_x, got_v = krylov_backward(x, g, v, sign, SCALE, True)
    oracle.assert_close(got_x, SCALE * y, "gradient of x, transposed", SCALE * size_y)
    oracle.assert_close(got_v, v_gradient, "gradient of v, transposed", size_v)


@sign_cases
@dtype_cases
@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 1, 97), (1, 1, 768), (2, 3, 5), (3, 2, 64), (2, 2, 1)])
def test_dense_is_the_index_formula_to_the_bit_and_its_adjoint_sums_diagonals(
    blocks: tuple[int, int, int], dtype: torch.dtype, sign: int
) -> None:
    v = torch.randn(2, *blocks).to(dtype)
    dense = torch.stack([oracle.matrix(group, sign) for group in v])
    assert torch.equal(krylov_dense(v, sign), dense.to(dtype))
    w = torch.randn(dense.shape).to(dtype)
    exact = torch.stack([oracle.diagonal_sums(group, blocks[2], sign) for group in w])
    oracle.assert_close(krylov_dense_adjoint(w, blocks[2], sign), exact)


@sign_cases
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "blocks",
    [
        *((1, 1, size) for size in (1, 5, 34, 64, 68, 97, 768, 1000)),
        *((2, 3, 5), (3, 2, 64), (6, 6, 128), (1, 4, 97), (2, 2, 1)),
    ],
    ids=lambda blocks: "x".join(map(str, blocks)),
)
def test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(
    blocks: tuple[int, int, int], wide: torch.dtype, transposed: bool, sign: int
) -> None:
    v = torch.randn(2, *blocks, dtype=wide).bfloat16().to(wide)
    dense = torch.stack([oracle.matrix(group, sign) for group in v])
    dense = dense.mT if transposed else dense
    spectrum = krylov_spectrum(v, sign, transposed)
    assert spectrum.dtype == wide
    outputs, inputs, block = (blocks[1], blocks[0], blocks[2]) if transposed else blocks
    for tokens in (0, 1, 2, 17, 100):
        for dtype in (torch.float32, *oracle.SIXTEEN_BIT) if wide == torch.float32 else (torch.float64,):
            x, base = (torch.randn(2, tokens, count * block).to(dtype) for count in (inputs, outputs))
            y = krylov_by_spectrum(x, spectrum, base, outputs, inputs, block, sign, SCALE)
            size = SCALE * x.double().norm().item() * v.double().norm().item() / inputs**0.5
            oracle.assert_close(y, base.double() + SCALE * x.double() @ dense.mT, f"y of {tokens} {dtype} tokens", size)
            if dtype in (wide, torch.bfloat16) and (_extension.available or not transposed):
                assert torch.equal(y, krylov(x, v.to(dtype), base, sign, SCALE, transposed))


@dtype_cases
def test_a_spectrum_is_kept_in_the_type_of_the_arithmetic(dtype: torch.dtype) -> None:
    v = torch.randn(1, 2, 1, 48).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(krylov_spectrum(v, -1, True), krylov_spectrum(v.to(wide), -1, True))


def test_a_spectrum_is_refused_where_it_does_not_fit() -> None:
    x, spectrum = torch.randn(1, 3, 64), krylov_spectrum(torch.randn(1, 2, 1, 64), 1, False)
    assert krylov_by_spectrum(x, spectrum, None, 2, 1, 64, 1, 1.0).shape == (1, 3, 128)
    with pytest.raises(RuntimeError, match="float64 where x is"):
        krylov_by_spectrum(x.double(), spectrum, None, 2, 1, 64, 1, 1.0)
    with pytest.raises(RuntimeError):
        krylov_by_spectrum(x, spectrum, None, 3, 1, 64, 1, 1.0)
    with pytest.raises(RuntimeError):
        krylov_by_spectrum(x, spectrum, None, 2, 1, 32, 1, 1.0)


def test_keeping_a_spectrum_passes_opcheck() -> None:
    x, v, base = torch.randn(2, 3, 12), torch.randn(2, 2, 3, 4), torch.randn(2, 3, 8)
    opcheck(torch.ops.surm_kernels.krylov_spectrum.default, (v, -1, False))
    spectrum = krylov_spectrum(v, -1, False)
    opcheck(torch.ops.surm_kernels.krylov_by_spectrum.default, (x, spectrum, base, 2, 3, 4, -1, 0.7))


@sign_cases
@pytest.mark.parametrize("parameter", DTYPES, ids=lambda dtype: f"parameter {dtype}")
@pytest.mark.parametrize(("weight_type", "out_type"), oracle.MERGED, ids=str)
def test_merging_adds_the_scaled_matrix_to_a_weight_and_rounds_once(
    weight_type: torch.dtype, out_type: torch.dtype, parameter: torch.dtype, sign: int
) -> None:
    for blocks in ((1, 1, 1), (1, 1, 97), (1, 1, 192), (2, 3, 5), (3, 2, 64), (2, 2, 1)):
        v = torch.randn(blocks).to(parameter)
        dense = oracle.matrix(v, sign)
        weight, out = torch.randn(dense.shape).to(weight_type), torch.empty(dense.shape, dtype=out_type)
        krylov_merge(weight, v, sign, SCALE, out)
        oracle.assert_close(out, weight.double() + SCALE * dense)


@sign_cases
@dtype_cases
def test_a_weight_may_be_merged_in_place_and_in_strided_rows(dtype: torch.dtype, sign: int) -> None:
    v = torch.randn(3, 4, 19).transpose(0, 1).to(dtype)
    weight, wanted = torch.randn(4 * 19, 3 * 19).to(dtype), torch.empty(4 * 19, 3 * 19, dtype=dtype)
    krylov_merge(weight, v, sign, SCALE, wanted)
    wide = torch.zeros(2 * 4 * 19, 3 * 19 + 5, dtype=dtype)
    rows = wide[1::2, 2:-3]
    rows.copy_(weight)
    krylov_merge(rows, v, sign, SCALE, rows)
    assert torch.equal(rows, wanted)
    rows.zero_()
    assert (wide == 0).all()
    krylov_merge(weight.mT.contiguous().mT, v, sign, SCALE, rows)
    assert torch.equal(rows, wanted)


def test_merging_refuses_types_and_shapes_that_do_not_go_together() -> None:
    v, weight = torch.randn(2, 3, 4), torch.randn(8, 12)
    with pytest.raises(RuntimeError, match="one dtype, or one of them float32"):
        krylov_merge(weight.bfloat16(), v, 1, 1.0, weight.half())
    with pytest.raises(RuntimeError):
        krylov_merge(weight, v, 1, 1.0, torch.empty(12, 8))
    with pytest.raises(RuntimeError):
        krylov_merge(weight[:7], v, 1, 1.0, torch.empty(8, 12))


def test_merging_passes_opcheck() -> None:
    arguments = (torch.randn(8, 12), torch.randn(2, 3, 4), -1, 0.7, torch.zeros(8, 12))
    opcheck(torch.ops.surm_kernels.krylov_merge.default, arguments)


@given(
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40)),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 40),
    sign=st.sampled_from([1, -1]),
    scale=st.floats(-4, 4, allow_nan=False),
    seed=st.integers(0, 2**31),
)
def test_product_transpose_and_pullback_are_adjoint_to_each_other(blocks, groups, tokens, sign, scale, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs, block = blocks
    v, x, g = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((groups, *blocks), (groups, tokens, inputs * block), (groups, tokens, outputs * block))
    )
    product = (g * krylov(x, v, None, sign, scale, False)).sum()
    size = abs(scale) * (g.norm() * x.norm() * v.norm()).item() * block**0.5
    assert abs(product - (x * krylov(g, v, None, sign, scale, True)).sum()) <= 1e-14 * size
    assert abs(product - (v * krylov_pullback(g, x, block, sign, scale)).sum()) <= 1e-14 * size
    assert abs(product - scale * (g.mT @ x * krylov_dense(v, sign)).sum()) <= 1e-14 * size


@sign_cases
@dtype_cases
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(
    tokens: int, dtype: torch.dtype, sign: int
) -> None:
    outputs, inputs, block = 2, 3, 20
    v = torch.randn(2, inputs, outputs, block).to(dtype).transpose(1, 2)
    for make in LAYOUTS.values():
        x, g, base = (make(tokens, n * block, dtype) for n in (inputs, outputs, outputs))
        plain_x, plain_g, plain_base, plain_v = (
            t.clone(memory_format=torch.contiguous_format) for t in (x, g, base, v)
        )
        y = krylov(x, v, base, sign, SCALE, False)
        assert y.is_contiguous()
        assert torch.equal(y, krylov(plain_x, plain_v, plain_base, sign, SCALE, False))
        pullback = krylov_pullback(g, x, block, sign, SCALE)
        assert torch.equal(pullback, krylov_pullback(plain_g, plain_x, block, sign, SCALE))
        for got, wanted in zip(
            krylov_backward(g, x, v, sign, SCALE, False),
            krylov_backward(plain_g, plain_x, plain_v, sign, SCALE, False),
            strict=True,
        ):
            assert got.is_contiguous()
            assert torch.equal(got, wanted)


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


def test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input() -> None:
    x, base, v = torch.zeros(1, 3, 8), torch.randn(1, 3, 8), torch.zeros(1, 1, 1, 8)
    v[..., 0] = 1
    inputs = {t.untyped_storage().data_ptr() for t in (x, base, v)}
    one = torch.ones(1, 1, 1)
    outputs = [
        krylov(x, v, base, 1, 1.0, False),
        krylov_pullback(x, base, 8, 1, 1.0),
        *krylov_backward(x, base, v, 1, 1.0, False),
        krylov_dense(one[None], 1),
        krylov_dense_adjoint(one, 1, 1),
    ]
    assert all(t.untyped_storage().data_ptr() not in inputs | {one.untyped_storage().data_ptr()} for t in outputs)
    assert all(t.is_contiguous() for t in outputs)


row_sizes = pytest.mark.parametrize("size", [64, 97, 768, 1000, 4096])
row_tokens = pytest.mark.parametrize("tokens", [2, 3, 16, 33])


@sign_cases
@row_sizes
@row_tokens
def test_each_row_is_as_accurate_as_its_own_size_allows(tokens: int, size: int, sign: int) -> None:
    v = torch.randn(1, 1, 1, size)
    dense = oracle.matrix(v[0], sign)
    magnitude = 10 ** torch.linspace(-4, 4, tokens)[torch.randperm(tokens)]
    alternating = torch.where(torch.arange(tokens) % 2 == 0, 1.0, 1e4)
    for scales in (magnitude, alternating, alternating.flip(0)):
        x = torch.randn(1, tokens, size) * scales[:, None]
        oracle.assert_rows_close(krylov(x, v, None, sign, 1.0, False), x.double() @ dense.T, "y")
        g_gradient, _ = krylov_backward(x, x, v, sign, 1.0, False)
        oracle.assert_rows_close(g_gradient, x.double() @ dense, "gradient of x")


@sign_cases
def test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy(sign: int) -> None:
    v = torch.randn(1, 1, 1, 768) / 64
    x = torch.randn(1, 8, 768) * 2.0 ** torch.tensor([120, -100, 0, 118, -90, 60, -60, 100])[:, None]
    oracle.assert_rows_close(krylov(x, v, None, sign, 1.0, False), x.double() @ oracle.matrix(v[0], sign).T)


@sign_cases
@row_sizes
@row_tokens
def test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens: int, size: int, sign: int) -> None:
    v = torch.randn(1, 1, 1, size)
    x = torch.randn(1, tokens, size) * 1e4
    x[:, ::2] = 0
    y = krylov(x, v, None, sign, 1.0, False)
    assert (y[:, ::2] == 0).all()
    assert (y[:, 1::2] != 0).any(-1).all()
    x_gradient, v_gradient = krylov_backward(x, torch.zeros_like(x), v, sign, 1.0, False)
    assert (x_gradient[:, ::2] == 0).all()
    assert (v_gradient == 0).all()
    assert (krylov_pullback(torch.zeros_like(x), x, size, sign, 1.0) == 0).all()


@sign_cases
@dtype_cases
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("blocks", [(1, 1, 97), (1, 1, 768), (2, 3, 64)], ids=lambda blocks: "x".join(map(str, blocks)))
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(
    blocks: tuple[int, int, int], bad: float, dtype: torch.dtype, sign: int
) -> None:
    outputs, inputs, block = blocks
    v = torch.randn(1, *blocks).to(dtype)
    for tokens in (1, 2, 5, 33):
        x = torch.randn(1, tokens, inputs * block).to(dtype)
        g = torch.randn(1, tokens, outputs * block).to(dtype)
        row = tokens // 2
        others = torch.arange(tokens) != row
        broken_x, broken_g = x.clone(), g.clone()
        broken_x[:, row, -1], broken_g[:, row, 3] = bad, bad
        x[:, row], g[:, row] = 0, 0

        y = krylov(broken_x, v, None, sign, 1.0, False)
        assert y[:, row].isnan().all()
        assert torch.equal(y[:, others], krylov(x, v, None, sign, 1.0, False)[:, others])
        x_gradient, v_gradient = krylov_backward(broken_g, x, v, sign, 1.0, False)
        assert x_gradient[:, row].isnan().all()
        assert torch.equal(x_gradient[:, others], krylov(g, v, None, sign, 1.0, True)[:, others])
        assert v_gradient.isnan().any()
        x_gradient, v_gradient = krylov_backward(g, broken_x, v, sign, 1.0, False)
        assert x_gradient.isfinite().all()
        assert v_gradient.isnan().any()


thread_cases = pytest.mark.parametrize(
    ("blocks", "tokens"),
    [((1, 1, 768), 300), ((1, 1, 768), 7), ((1, 1, 97), 1000), ((1, 1, 4096), 65), ((6, 6, 128), 200), ((2, 3, 5), 33)],
    ids=lambda case: "x".join(map(str, case)) if isinstance(case, tuple) else f"{case} tokens",
)


@sign_cases
@thread_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_every_run(
    blocks: tuple[int, int, int], tokens: int, dtype: torch.dtype, sign: int, threads
) -> None:
    outputs, inputs, block = blocks
    v, x, g = (
        torch.randn(shape).to(dtype)
        for shape in ((1, *blocks), (1, tokens, inputs * block), (1, tokens, outputs * block))
    )
    w = torch.randn(1, outputs * block, inputs * block).to(dtype)

    def everything() -> list[Tensor]:
        return [
            krylov(x, v, g, sign, SCALE, False),
            krylov(g, v, None, sign, SCALE, True),
            krylov_pullback(g, x, block, sign, SCALE),
            *krylov_backward(g, x, v, sign, SCALE, False),
            krylov_dense_adjoint(w, block, sign),
        ]

    threads(1)
    wanted = everything()
    assert all(map(torch.equal, everything(), wanted))
    # torch.fft and even torch.mul of complex numbers round by how threads share the work, so the reference repeats
    # itself for one number of threads only.
    for count in (2, 3, 1) if _extension.available else (1,):
        threads(count)
        assert all(map(torch.equal, everything(), wanted))
