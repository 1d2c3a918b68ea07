"""Converters: against SciPy's matrices, PEFT's own layers, and the definitions of the other conventions."""

import numpy
import pytest
import scipy.linalg
import torch
from torch import Tensor

from surm_kernels import convert, dense, functional
from tests import oracle

SHAPES = ((1, 1), (1, 4), (5, 1), (6, 6), (3, 7), (8, 5))  # (m, n)


def columns_and_rows(m: int, n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(m, dtype=torch.float64), torch.randn(n, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_toeplitz_matrices_are_those_of_scipy(shape: tuple[int, int]) -> None:
    m, n = shape
    column, row = columns_and_rows(m, n)
    wanted = torch.from_numpy(scipy.linalg.toeplitz(column.numpy(), row.numpy()))
    t = convert.toeplitz_from_scipy(column, row)
    assert torch.equal(dense.toeplitz(t, n), wanted)
    assert torch.equal(torch.from_numpy(scipy.linalg.toeplitz(*convert.toeplitz_to_scipy(t, n))), wanted)
    assert torch.equal(convert.toeplitz_from_scipy(*convert.toeplitz_to_scipy(t, n)), t)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hankel_matrices_are_those_of_scipy(shape: tuple[int, int]) -> None:
    m, n = shape
    column, row = columns_and_rows(m, n)
    row[0] = column[-1]  # SciPy warns where they differ
    wanted = torch.from_numpy(scipy.linalg.hankel(column.numpy(), row.numpy()))
    h = convert.hankel_from_scipy(column, row)
    assert torch.equal(dense.hankel(h, n), wanted)
    assert torch.equal(torch.from_numpy(scipy.linalg.hankel(*convert.hankel_to_scipy(h, n))), wanted)
    row[0] = 17
    assert torch.equal(convert.hankel_from_scipy(column, row), h)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_circulants_are_those_of_scipy_and_have_the_first_row_asked_for(n: int) -> None:
    c = torch.randn(n, dtype=torch.float64)
    matrix = torch.from_numpy(scipy.linalg.circulant(c.numpy()))
    assert torch.equal(dense.circulant(c), matrix)
    assert torch.equal(convert.circulant_from_first_row(matrix[0]), c)
    assert torch.equal(convert.circulant_from_first_row(c), matrix[0])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_skew_circulants_have_the_first_row_asked_for(n: int) -> None:
    row = torch.randn(n, dtype=torch.float64)
    matrix = dense.skew_circulant(convert.skew_circulant_from_first_row(row))
    assert torch.equal(matrix[0], row)
    assert torch.equal(matrix, dense.skew_circulant(row).T)
    assert torch.equal(convert.skew_circulant_from_first_row(convert.skew_circulant_from_first_row(row)), row)


def peft_layer(config, in_features: int, out_features: int):
    """A torch.nn.Linear with PEFT's adapter on it."""
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(in_features, out_features))
    return peft.get_peft_model(model, config(peft)).base_model.model[0]


@pytest.mark.parametrize("sizes", [(12, 8), (8, 12), (12, 12)], ids=str)
@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_c3a_kernels_give_what_pefts_own_forward_gives(sizes: tuple[int, int], block_size: int) -> None:
    layer = peft_layer(lambda peft: peft.C3AConfig(block_size=block_size, target_modules=["0"]), *sizes)
    kernel = layer.c3a_kernel["default"]
    with torch.no_grad():
        kernel.normal_()
    x = torch.randn(5, sizes[0])
    c = convert.circulant_from_c3a(kernel, sizes[0])
    oracle.assert_close(functional.block_circulant_linear(x, c), (layer(x) - layer.base_layer(x)).detach().double())
    oracle.assert_close(dense.block_circulant(c), layer.get_delta_weight("default").detach().double())
    torch.testing.assert_close(convert.circulant_to_c3a(c, sizes[0]), kernel, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sizes", [(12, 8), (8, 12), (16, 16)], ids=str)
@pytest.mark.parametrize("factored", [False, True])
def test_lokr_factors_give_pefts_own_update(sizes: tuple[int, int], factored: bool) -> None:
    options = {"r": 1, "alpha": 3, "init_weights": False, "decompose_both": factored}
    layer = peft_layer(lambda peft: peft.LoKrConfig(target_modules=["0"], **options), *sizes)

    def factor(name: str) -> Tensor:
        whole = getattr(layer, name)
        if "default" in whole:
            return whole["default"]
        return getattr(layer, f"{name}_a")["default"] @ getattr(layer, f"{name}_b")["default"]

    A, B = convert.kronecker_from_lokr(factor("lokr_w1"), factor("lokr_w2"), layer.scaling["default"])
    wanted = layer.get_delta_weight("default").detach()
    assert wanted.norm() > 0
    oracle.assert_close(dense.kronecker(A, B), wanted.double())


def test_surms_kronecker_factors_are_swapped() -> None:
    lora_A, lora_B = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    A, B = convert.kronecker_from_surm(lora_A, lora_B, 0.5)
    wanted = 0.5 * numpy.kron(lora_B, lora_A)
    oracle.assert_close(dense.kronecker(A, B), torch.from_numpy(wanted))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_generators_of_structured_nets_have_transposed_right_factors(n: int) -> None:
    G, H = torch.randn(2, 3, n, dtype=torch.float64)
    wanted = sum(oracle.f_circulant(g, 1) @ oracle.f_circulant(h, -1).T for g, h in zip(G, H, strict=True))
    oracle.assert_close(dense.toeplitz_like(*convert.toeplitz_like_from_structured_nets(G, H)), wanted)
    there_and_back = convert.toeplitz_like_to_structured_nets(*convert.toeplitz_like_from_structured_nets(G, H))
    assert all(map(torch.equal, there_and_back, (G, H)))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_displacement_generators_are_those_of_the_matrix(n: int) -> None:
    G, H = torch.randn(2, 3, n, dtype=torch.float64)
    unit = torch.zeros(n, dtype=torch.float64)
    unit[1 % n] = 1
    shift, skew_shift = oracle.f_circulant(unit, 1), oracle.f_circulant(unit if n > 1 else -unit, -1)
    matrix = dense.toeplitz_like(*convert.toeplitz_like_from_displacement(G, H))
    oracle.assert_close(shift @ matrix - matrix @ skew_shift, G.T @ H)
    left, right = convert.toeplitz_like_to_displacement(G, H)
    matrix = dense.toeplitz_like(G, H)
    oracle.assert_close(left.T @ right, shift @ matrix - matrix @ skew_shift)


def test_converters_are_differentiable() -> None:
    column, row = (t.requires_grad_() for t in columns_and_rows(4, 3))
    kernel = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    G, H = (t.requires_grad_() for t in torch.randn(2, 2, 5, dtype=torch.float64))
    for function, arguments in (
        (convert.toeplitz_from_scipy, (column, row)),
        (convert.hankel_from_scipy, (column, row)),
        (lambda kernel: convert.circulant_from_c3a(kernel, 12), (kernel,)),
        (convert.toeplitz_like_from_structured_nets, (G, H)),
        (convert.toeplitz_like_from_displacement, (G, H)),
        (convert.toeplitz_like_to_displacement, (G, H)),
    ):
        assert torch.autograd.gradcheck(function, arguments)


REFUSALS = {
    "column is a matrix": (
        lambda: convert.toeplitz_from_scipy(torch.zeros(2, 2), torch.zeros(2)),
        ValueError,
        "column must have shape (m,) with no empty dimension, got (2, 2)",
    ),
    "row is a list": (
        lambda: convert.hankel_from_scipy(torch.zeros(2), [0.0]),
        TypeError,
        "row must be a torch.Tensor, got list",
    ),
    "too many columns": (
        lambda: convert.toeplitz_to_scipy(torch.zeros(4), 5),
        ValueError,
        "t must have m + n - 1 >= 5 values in its last dimension for n = 5 columns, got shape (4,)",
    ),
    "n is no int": (lambda: convert.hankel_to_scipy(torch.zeros(4), 2.0), TypeError, "n must be an int, got float"),
    "kernel does not fit": (
        lambda: convert.circulant_from_c3a(torch.zeros(2, 3, 4), 8),
        ValueError,
        "weight must have shape (M, K, b) with K b = in_features, 8, got (2, 3, 4)",
    ),
    "generators differ": (
        lambda: convert.toeplitz_like_to_displacement(torch.zeros(2, 4), torch.zeros(3, 4)),
        ValueError,
        "H must have shape (r, n) like G, (2, 4), got (3, 4)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_by_name_value_and_wish(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error) as refusal:
        call()
    assert str(refusal.value) == message
