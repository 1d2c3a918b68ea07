"""The dense matrices of block Toeplitz and Hankel matrices, merging them, and the sums along their diagonals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from surm_kernels.ops.toeplitz import toeplitz_dense, toeplitz_dense_adjoint, toeplitz_merge
from torch import Tensor
from torch.library import opcheck

from tests import oracle

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

reflected_cases = pytest.mark.parametrize("reflected", [False, True], ids=["toeplitz", "hankel"])
dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
block_cases = pytest.mark.parametrize(
    ("blocks", "rows", "columns"),
    [
        ((1, 1), 1, 1),
        ((1, 1), 1, 7),
        ((1, 1), 7, 1),
        ((1, 1), 97, 63),
        ((1, 1), 15, 1000),
        ((1, 1), 768, 768),
        ((2, 3), 5, 4),
        ((3, 2), 64, 33),
        ((1, 4), 1, 2),
        ((4, 1), 17, 16),
    ],
    ids=lambda case: "x".join(map(str, case)) if isinstance(case, tuple) else str(case),
)


def exact_matrices(t: Tensor, columns: int, reflected: bool) -> Tensor:
    make = oracle.hankel if reflected else oracle.toeplitz
    return torch.stack([make(group, columns) for group in t])


def exact_sums(w: Tensor, rows: int, columns: int, reflected: bool) -> Tensor:
    """The sums over the diagonals of every block of w, one index of the diagonal after the other."""
    blocks = w.double().unflatten(1, (-1, rows)).unflatten(3, (-1, columns)).transpose(2, 3)
    i, j = torch.arange(rows)[:, None], torch.arange(columns)
    index = i + j if reflected else i - j + columns - 1
    sums = torch.zeros(*blocks.shape[:3], rows + columns - 1, dtype=torch.float64)
    return sums.index_add(-1, index.flatten(), blocks.flatten(3))


@reflected_cases
@dtype_cases
@block_cases
def test_dense_is_the_index_formula_to_the_bit(
    blocks: tuple[int, int], rows: int, columns: int, dtype: torch.dtype, reflected: bool
) -> None:
    t = torch.randn(2, *blocks, rows + columns - 1).to(dtype)
    t[..., 0] = -0.0
    w = toeplitz_dense(t, columns, reflected)
    exact = exact_matrices(t, columns, reflected).to(dtype)
    assert torch.equal(w, exact)
    assert torch.equal(w.signbit(), exact.signbit())


@reflected_cases
@dtype_cases
@block_cases
def test_adjoint_sums_the_diagonals_of_every_block(
    blocks: tuple[int, int], rows: int, columns: int, dtype: torch.dtype, reflected: bool
) -> None:
    w = torch.randn(2, blocks[0] * rows, blocks[1] * columns).to(dtype)
    sums = toeplitz_dense_adjoint(w, rows, columns, reflected)
    oracle.assert_close(sums, exact_sums(w, rows, columns, reflected), "sums", w.double().norm().item())


@reflected_cases
@pytest.mark.parametrize("parameter", DTYPES, ids=lambda dtype: f"parameter {dtype}")
@pytest.mark.parametrize(("weight_type", "out_type"), oracle.MERGED, ids=str)
def test_merging_adds_the_scaled_matrix_to_a_weight_and_rounds_once(
    weight_type: torch.dtype, out_type: torch.dtype, parameter: torch.dtype, reflected: bool
) -> None:
    sizes = (((1, 1), 1, 1), ((1, 1), 1, 7), ((1, 1), 97, 63), ((1, 1), 15, 300), ((2, 3), 5, 4), ((3, 2), 64, 33))
    for blocks, rows, columns in sizes:
        t = torch.randn(*blocks, rows + columns - 1).to(parameter)
        (dense,) = exact_matrices(t[None], columns, reflected)
        weight, out = torch.randn(dense.shape).to(weight_type), torch.empty(dense.shape, dtype=out_type)
        toeplitz_merge(weight, t, columns, reflected, 0.75, out)
        oracle.assert_close(out, weight.double() + 0.75 * dense)


@reflected_cases
@dtype_cases
def test_a_weight_may_be_merged_in_place_and_in_strided_rows(dtype: torch.dtype, reflected: bool) -> None:
    t = torch.randn(3, 4, 30).transpose(0, 1).to(dtype)
    weight, wanted = torch.randn(4 * 19, 3 * 12).to(dtype), torch.empty(4 * 19, 3 * 12, dtype=dtype)
    toeplitz_merge(weight, t, 12, reflected, 0.75, wanted)
    wide = torch.zeros(2 * 4 * 19, 3 * 12 + 5, dtype=dtype)
    rows = wide[1::2, 2:-3]
    rows.copy_(weight)
    toeplitz_merge(rows, t, 12, reflected, 0.75, rows)
    assert torch.equal(rows, wanted)
    rows.zero_()
    assert (wide == 0).all()
    toeplitz_merge(weight.mT.contiguous().mT, t, 12, reflected, 0.75, rows)
    assert torch.equal(rows, wanted)


def test_merging_refuses_types_and_shapes_that_do_not_go_together() -> None:
    t, weight = torch.randn(2, 3, 9), torch.randn(2 * 4, 3 * 6)
    with pytest.raises(RuntimeError, match="one dtype, or one of them float32"):
        toeplitz_merge(weight.bfloat16(), t, 6, False, 1.0, weight.half())
    with pytest.raises(RuntimeError):
        toeplitz_merge(weight, t, 6, False, 1.0, torch.empty(18, 8))
    with pytest.raises(RuntimeError):
        toeplitz_merge(weight[:7], t, 6, False, 1.0, torch.empty(8, 18))


@reflected_cases
def test_merging_passes_opcheck(reflected: bool) -> None:
    arguments = (torch.randn(8, 18), torch.randn(2, 3, 9), 6, reflected, 0.7, torch.zeros(8, 18))
    opcheck(torch.ops.surm_kernels.toeplitz_merge.default, arguments)


@given(
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    groups=st.integers(1, 3),
    reflected=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_dense_and_its_adjoint_are_adjoint(blocks, rows, columns, groups, reflected, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(groups, *blocks, rows + columns - 1, generator=generator, dtype=torch.float64)
    w = torch.randn(groups, blocks[0] * rows, blocks[1] * columns, generator=generator, dtype=torch.float64)
    product = (w * toeplitz_dense(t, columns, reflected)).sum()
    allowed = 1e-14 * (w.norm() * t.norm()).item() * max(rows, columns) ** 0.5
    assert abs(product - (t * toeplitz_dense_adjoint(w, rows, columns, reflected)).sum()) <= allowed


@reflected_cases
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(reflected: bool) -> None:
    t = torch.randn(1, 3, 2, 2 * 12)[..., ::2].transpose(1, 2).expand(2, 2, 3, 12)
    w = torch.randn(2, 3 * 8, 2 * 5).mT
    assert torch.equal(toeplitz_dense(t, 8, reflected), toeplitz_dense(t.clone().contiguous(), 8, reflected))
    plain = w.clone(memory_format=torch.contiguous_format)
    sums = toeplitz_dense_adjoint(w, 5, 8, reflected)
    assert torch.equal(sums, toeplitz_dense_adjoint(plain, 5, 8, reflected))


@reflected_cases
def test_one_bad_value_stays_on_its_diagonal(reflected: bool) -> None:
    t = torch.randn(1, 1, 1, 40)
    t[..., 11] = float("nan")
    w = toeplitz_dense(t, 17, reflected)
    sums = toeplitz_dense_adjoint(w, 24, 17, reflected)
    assert torch.equal(sums.isnan(), t.isnan())


@reflected_cases
def test_outputs_are_new_tensors_even_where_they_equal_an_input(reflected: bool) -> None:
    one = torch.ones(1, 1, 1, 1)
    for result in (toeplitz_dense(one, 1, reflected), toeplitz_dense_adjoint(one[0], 1, 1, reflected)):
        assert result.untyped_storage().data_ptr() != one.untyped_storage().data_ptr()


@reflected_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sums_are_bitwise_the_same_for_any_number_of_threads(dtype: torch.dtype, reflected: bool, threads) -> None:
    w = torch.randn(1, 2 * 300, 3 * 200).to(dtype)
    threads(1)
    wanted = toeplitz_dense_adjoint(w, 300, 200, reflected)
    for count in (2, 3):
        threads(count)
        assert torch.equal(toeplitz_dense_adjoint(w, 300, 200, reflected), wanted)
