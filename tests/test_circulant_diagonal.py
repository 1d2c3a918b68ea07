"""Chains of circulant and diagonal factors: the matrix by its factors, counts, and a start that is zero and trains."""

import pytest
import torch

from surm_kernels.structures import CirculantDiagonal
from tests import oracle


@pytest.mark.parametrize("factors", [2, 3, 4])
@pytest.mark.parametrize("sizes", [(7, 7), (12, 5), (5, 12), (1, 1)], ids=str)
def test_the_matrix_is_the_product_of_its_factors(sizes: tuple[int, int], factors: int) -> None:
    structure = CirculantDiagonal(*sizes, factors)
    c, d = (torch.randn(shape, dtype=torch.float64) for shape in structure.parameter_shapes().values())
    W = oracle.f_circulant(c[0], 1)
    for diagonal, column in zip(d, c[1:], strict=True):
        W = W @ torch.diag(diagonal) @ oracle.f_circulant(column, 1)
    inputs, outputs = sizes
    oracle.assert_close(structure.dense(c, d), W[:outputs, :inputs], size=W.norm().item())


def test_an_update_has_three_numbers_a_feature_and_more_with_more_factors() -> None:
    assert CirculantDiagonal(768, 768).count() == 3 * 768
    assert CirculantDiagonal(768, 3072, factors=3).count() == 5 * 3072


def test_the_start_is_zero_and_trains() -> None:
    structure = CirculantDiagonal(12, 8, factors=3)
    parameters = [torch.empty(shape) for shape in structure.parameter_shapes().values()]
    structure.initialise(parameters, "paper")
    for parameter in parameters:
        parameter.requires_grad_()
    y = structure.linear(torch.randn(5, 12), *parameters)
    y.backward(torch.randn_like(y))
    assert (y == 0).all()
    assert (parameters[0].grad[0] != 0).all()


def test_one_circulant_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="factors must be at least 2, got 1"):
        CirculantDiagonal(8, 8, factors=1)
    with pytest.raises(TypeError, match="factors must be an int, got float"):
        CirculantDiagonal(8, 8, factors=2.0)
