"""The dense matrices of grids of every kind of block, merging them, and the sums over what each value fills."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from surm_kernels.ops.grid import grid_dense, grid_dense_adjoint, grid_merge
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
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Rows, columns, blocks of a column and blocks of a row; circulant blocks have as many rows as columns.
SHAPES = (
    *((1, 1), (97, 97), (768, 768), (1, 7), (7, 1), (97, 63), (15, 1000), (1, 1, 2, 2), (5, 5, 2, 3), (5, 4, 2, 3)),
    *((33, 64, 3, 2), (64, 33, 3, 2), (1, 2, 1, 4), (17, 16, 4, 1)),
)
MERGED_SHAPES = ((1, 1), (1, 7), (97, 63), (15, 300), (192, 192), (5, 4, 2, 3), (64, 33, 3, 2), (1, 1, 2, 2))
SCALE = 0.75


@cases("w, dtype", grids_in_turns(SHAPES, DTYPES))
def test_dense_is_the_index_formula_to_the_bit(w: Grid, dtype: torch.dtype) -> None:
    values = w.values(2, dtype)
    values[..., 0] = -0.0
    dense, exact = grid_dense(values, w.kind, w.columns), w.matrices(values).to(dtype)
    assert torch.equal(dense, exact)
    assert torch.equal(dense.signbit(), exact.signbit())


@cases("w, dtype", grids_in_turns(SHAPES, DTYPES))
def test_adjoint_sums_what_each_value_fills_in_every_block(w: Grid, dtype: torch.dtype) -> None:
    matrices = torch.randn(2, w.outputs * w.rows, w.inputs * w.columns).to(dtype)
    sums = grid_dense_adjoint(matrices, w.kind, w.rows, w.columns)
    oracle.assert_close(sums, w.sums(matrices), "sums", matrices.double().norm().item())


@cases("types, parameter, kind", in_turns(oracle.MERGED, DTYPES, EVERY_KIND))
def test_merging_adds_the_scaled_matrix_to_a_weight_and_rounds_once(
    types: tuple[torch.dtype, torch.dtype], parameter: torch.dtype, kind: int
) -> None:
    for shape in MERGED_SHAPES:
        w = grid_of(kind, *shape)
        (values,) = w.values(1, parameter)
        (dense,) = w.matrices(values[None])
        weight, out = torch.randn(dense.shape).to(types[0]), torch.empty(dense.shape, dtype=types[1])
        grid_merge(weight, values, kind, w.columns, SCALE, None, out)
        oracle.assert_close(out, weight.double() + SCALE * dense)


@cases("w, dtype", kinds_and_types_in_turns([(19, 12, 4, 3)]))
def test_a_weight_may_be_merged_in_place_and_in_strided_rows(w: Grid, dtype: torch.dtype) -> None:
    values = w.values(1, dtype)[0].transpose(0, 1).contiguous().transpose(0, 1)
    rows, columns = 4 * w.rows, 3 * w.columns
    weight, wanted = torch.randn(rows, columns).to(dtype), torch.empty(rows, columns, dtype=dtype)
    grid_merge(weight, values, w.kind, w.columns, SCALE, None, wanted)
    wide = torch.zeros(2 * rows, columns + 5, dtype=dtype)
    strided = wide[1::2, 2:-3]
    strided.copy_(weight)
    grid_merge(strided, values, w.kind, w.columns, SCALE, None, strided)
    assert torch.equal(strided, wanted)
    strided.zero_()
    assert (wide == 0).all()
    grid_merge(weight.mT.contiguous().mT, values, w.kind, w.columns, SCALE, None, strided)
    assert torch.equal(strided, wanted)


@kind_cases
def test_merging_refuses_types_and_shapes_that_do_not_go_together(kind: int) -> None:
    w = grid_of(kind, 4, 6, 2, 3)
    (values,) = w.values()
    weight = torch.randn(2 * w.rows, 18)
    with pytest.raises(RuntimeError, match="one dtype, or one of them float32"):
        grid_merge(weight.bfloat16(), values, kind, 6, 1.0, None, weight.half())
    with pytest.raises(RuntimeError):
        grid_merge(weight, values, kind, 6, 1.0, None, torch.empty(18, 2 * w.rows))
    with pytest.raises(RuntimeError):
        grid_merge(weight[:-1], values, kind, 6, 1.0, None, torch.empty(weight.shape))


@either_kind
def test_merging_passes_opcheck(kind: int) -> None:
    w = grid_of(kind, 4, 6, 2, 3)
    weight = torch.randn(2 * w.rows, 18)
    arguments = (weight, w.values()[0], kind, 6, 0.7, None, torch.zeros_like(weight))
    opcheck(torch.ops.surm_kernels.grid_merge.default, arguments)


@settings(max_examples=80)
@given(
    kind=st.sampled_from(EVERY_KIND),
    blocks=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_dense_and_its_adjoint_are_adjoint(kind, blocks, groups, seed) -> None:
    torch.manual_seed(seed)
    w = grid_of(kind, *blocks)
    values = w.values(groups, torch.float64)
    matrices = torch.randn(groups, w.outputs * w.rows, w.inputs * w.columns, dtype=torch.float64)
    product = (matrices * grid_dense(values, kind, w.columns)).sum()
    allowed = 1e-14 * (matrices.norm() * values.norm()).item() * max(w.rows, w.columns) ** 0.5
    assert abs(product - (values * grid_dense_adjoint(matrices, kind, w.rows, w.columns)).sum()) <= allowed


@kind_cases
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(kind: int) -> None:
    w = grid_of(kind, 5, 8, 3, 2)
    values = torch.cat([w.values()] * 2, -1).transpose(1, 2).contiguous().transpose(1, 2)[..., ::2].expand(2, 3, 2, -1)
    matrices = torch.randn(2, 2 * w.columns, 3 * w.rows).mT
    assert torch.equal(grid_dense(values, kind, 8), grid_dense(values.clone().contiguous(), kind, 8))
    plain = matrices.clone(memory_format=torch.contiguous_format)
    sums = grid_dense_adjoint(matrices, kind, w.rows, 8)
    assert torch.equal(sums, grid_dense_adjoint(plain, kind, w.rows, 8))


@kind_cases
def test_one_bad_value_stays_where_it_fills_the_matrix(kind: int) -> None:
    w = grid_of(kind, 24, 17)
    values = w.values()
    values[..., 11] = float("nan")
    sums = grid_dense_adjoint(grid_dense(values, kind, 17), kind, w.rows, 17)
    assert torch.equal(sums.isnan(), values.isnan())


@kind_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sums_are_bitwise_the_same_for_any_number_of_threads(dtype: torch.dtype, kind: int, threads) -> None:
    w = grid_of(kind, 300, 200, 2, 3)
    matrices = torch.randn(1, 2 * w.rows, 3 * w.columns).to(dtype)
    threads(1)
    wanted = grid_dense_adjoint(matrices, kind, w.rows, w.columns)
    for count in (2, 3):
        threads(count)
        assert torch.equal(grid_dense_adjoint(matrices, kind, w.rows, w.columns), wanted)
