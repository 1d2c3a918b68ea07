"""Monarch matrices: entries by their formula, counts, the nearest one, and a start that is zero and trains."""

import itertools

import pytest
import torch
from torch import Tensor

from surm_kernels.structures import Monarch
from tests import oracle

CASES = {"square": Monarch(12, 12), "wide": Monarch(12, 8, 3, 2), "tall": Monarch(4, 9, 2, 3), "number": Monarch(1, 1)}
cases = pytest.mark.parametrize("structure", CASES.values(), ids=CASES.keys())


def drawn(structure: Monarch) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in structure.parameter_shapes().values()]


@cases
def test_every_entry_is_one_product_of_the_factors(structure: Monarch) -> None:
    L, R = drawn(structure)
    k, q = structure.blocks, structure.inner_blocks
    width = structure.in_features // k
    W = structure.dense(L, R)
    for row, column in itertools.product(range(structure.out_features), range(structure.in_features)):
        (i, b), (a, j) = divmod(row, q), divmod(column, width)
        assert W[row, column] == L[b, i, a] * R[a, b, j]


def test_a_square_matrix_has_the_factors_of_dao_and_others() -> None:
    """P L P R with block-diagonal L and R and the permutation that transposes a 3 x 3 grid."""
    structure = Monarch(9, 9)
    L, R = drawn(structure)
    P = torch.eye(9, dtype=torch.float64)[torch.arange(9).view(3, 3).T.flatten()]
    W = P @ torch.block_diag(*L) @ P @ torch.block_diag(*R)
    oracle.assert_close(structure.dense(L, R), W)


def test_an_update_of_a_bert_layer_has_less_than_a_tenth_of_its_numbers() -> None:
    structure = Monarch(768, 768)
    assert (structure.blocks, structure.inner_blocks) == (24, 24)
    assert structure.count() == 2 * 24 * 768
    assert Monarch(768, 3072, 24, 48).count() == 48 * 768 + 24 * 3072


@cases
def test_a_monarch_matrix_is_its_own_nearest(structure: Monarch) -> None:
    W = structure.dense(*drawn(structure))
    oracle.assert_close(structure.dense(*structure.nearest(W)), W)


def test_no_monarch_matrix_nearby_is_nearer_than_the_nearest() -> None:
    structure, W = CASES["wide"], torch.randn(8, 12, dtype=torch.float64)
    L, R = structure.nearest(W)
    nearest = (structure.dense(L, R) - W).norm()
    for _ in range(20):
        moved = (t + 1e-3 * torch.randn_like(t) for t in (L, R))
        assert (structure.dense(*moved) - W).norm() > nearest


def test_the_start_is_zero_and_trains() -> None:
    structure = Monarch(12, 8, 3, 2)
    L, R = (torch.empty(shape) for shape in structure.parameter_shapes().values())
    structure.initialise([L, R], "paper")
    y = structure.linear(torch.randn(5, 12), L.requires_grad_(), R)
    y.backward(torch.randn_like(y))
    assert (y == 0).all()
    assert (L.grad != 0).all()


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks must divide in_features, got 5 for 12"):
        Monarch(12, 12, blocks=5)
    with pytest.raises(ValueError, match="inner_blocks must divide out_features, got 3 for 8"):
        Monarch(12, 8)


@pytest.mark.parametrize(("columns", "rows"), [(48, 16), (896, 128), (3584, 512), (7, 5), (12, 12)])
def test_there_is_one_that_fits_any_sizes(columns: int, rows: int) -> None:
    structure = Monarch.fitting(columns, rows)
    assert (structure.in_features, structure.out_features) == (columns, rows)
    assert Monarch.fitting(12, 12) == Monarch(12, 12)
