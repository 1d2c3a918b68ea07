"""Structures: shapes and counts, products and matrices of any shape, initialisation and nearest projection."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from surm_kernels.structures import BlockCirculant, Circulant, CirculantProduct, SkewCirculant, Structure
from tests import oracle

STRUCTURES = {
    "circulant": Circulant(12, 12),
    "circulant, wide": Circulant(12, 8),
    "circulant, tall": Circulant(5, 9),
    "circulant, blocks": Circulant(12, 8, block_size=4),
    "skew-circulant": SkewCirculant(12, 12),
    "skew-circulant, wide": SkewCirculant(7, 3),
    "skew-circulant, tall": SkewCirculant(1, 6),
    "skew-circulant, blocks": SkewCirculant(6, 9, block_size=3),
    "block circulant": BlockCirculant(12, 8, 2),
    "block circulant, one block": BlockCirculant(6, 6, 6),
    "block circulant, numbers": BlockCirculant(3, 2, 1),
    "product": CirculantProduct(12, 12),
    "product, wide": CirculantProduct(12, 8),
    "product, blocks": CirculantProduct(12, 8, block_size=4),
    "one number": Circulant(1, 1),
}
structure_cases = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())


def parameters_of(structure: Structure, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for shape in structure.parameter_shapes().values()]


@structure_cases
def test_product_is_the_product_with_the_dense_matrix(structure: Structure) -> None:
    parameters = parameters_of(structure)
    matrix = structure.dense(*parameters)
    assert matrix.shape == (structure.out_features, structure.in_features)
    for leading in ((), (5,), (2, 3), (0,)):
        x = torch.randn(*leading, structure.in_features, dtype=torch.float64)
        oracle.assert_close(structure.linear(x, *parameters), x @ matrix.T)
        for base_shape in ((*leading, structure.out_features), (structure.out_features,), (1,), ()):
            base = torch.randn(base_shape, dtype=torch.float64)
            oracle.assert_close(structure.linear(x, *parameters, base=base, scale=0.3), base + 0.3 * x @ matrix.T)


@structure_cases
def test_derivatives_reach_the_input_the_base_and_every_parameter(structure: Structure) -> None:
    tensors = [*parameters_of(structure)]
    tensors += [torch.randn(n, dtype=torch.float64) for n in (structure.in_features, structure.out_features)]
    for t in tensors:
        t.requires_grad_()

    def product(*tensors: Tensor) -> Tensor:
        *parameters, x, base = tensors
        return structure.linear(x, *parameters, base=base, scale=0.5)

    assert torch.autograd.gradcheck(product, tensors)
    assert torch.autograd.gradcheck(structure.dense, tensors[:-2])


def test_rectangular_matrices_are_the_top_left_of_the_square_one() -> None:
    c = torch.randn(9, dtype=torch.float64)
    square = oracle.f_circulant(c, 1)
    assert torch.equal(Circulant(5, 9).dense(c), square[:, :5])
    assert torch.equal(Circulant(9, 4).dense(c), square[:4])
    assert torch.equal(SkewCirculant(9, 4).dense(c), oracle.f_circulant(c, -1)[:4])


def test_blocks_are_a_grid_of_circulants() -> None:
    c = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(BlockCirculant(12, 8, 4).dense(c), oracle.matrix(c, 1))
    assert torch.equal(SkewCirculant(12, 8, 4).dense(c), oracle.matrix(c, -1))


def test_circulant_product_is_elementwise() -> None:
    r1, r2 = torch.randn(2, 12, dtype=torch.float64)
    product = CirculantProduct(12, 12).dense(r1, r2)
    assert torch.allclose(product, oracle.f_circulant(r1, 1) * oracle.f_circulant(r2, 1))


@structure_cases
def test_count_is_what_the_parameters_hold(structure: Structure) -> None:
    assert structure.count() == sum(p.numel() for p in parameters_of(structure))


def test_counts_of_the_paper_come_out_exactly() -> None:
    surm = CirculantProduct(768, 768)
    assert surm.count() == 1536
    assert 12 * 3 * surm.count() == 55_296  # query, key and value of BERT-base or ViT-B
    assert 12 * 2 * surm.count() == 36_864  # query and value
    assert Circulant(768, 3072).count() == 3072
    assert BlockCirculant(768, 768, 128).count() == 6 * 6 * 128
    assert CirculantProduct(768, 3072, block_size=768).count() == 2 * 4 * 768


@structure_cases
def test_nearest_gives_back_a_matrix_of_the_structure(structure: Structure) -> None:
    matrix = structure.dense(*parameters_of(structure))
    oracle.assert_close(structure.dense(*structure.nearest(matrix)), matrix)


@structure_cases
def test_nearest_is_idempotent_and_orthogonal_and_beats_every_perturbation(structure: Structure) -> None:
    weight = torch.randn(structure.out_features, structure.in_features, dtype=torch.float64)
    parameters = structure.nearest(weight)
    assert [tuple(p.shape) for p in parameters] == list(structure.parameter_shapes().values())
    matrix = structure.dense(*parameters)
    oracle.assert_close(structure.dense(*structure.nearest(matrix)), matrix)
    distance = (weight - matrix).norm()
    for _ in range(20):
        other = structure.dense(*(p + 0.01 * torch.randn_like(p) for p in parameters))
        assert (weight - other).norm() >= distance
        # The structured matrices here are a linear space, to which the residual is orthogonal.
        assert abs(((weight - matrix) * structure.dense(*parameters_of(structure))).sum()) < 1e-12 * weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nearest_keeps_the_type_and_rounds_once(dtype: torch.dtype) -> None:
    weight = torch.randn(96, 64).to(dtype)
    for structure in (Circulant(64, 96), SkewCirculant(64, 96), BlockCirculant(64, 96, 32)):
        (v,) = structure.nearest(weight)
        (exact,) = structure.nearest(weight.double())
        assert v.dtype == dtype
        oracle.assert_close(v, exact)


@pytest.mark.parametrize("sizes", [(768, 768), (768, 3072), (3072, 768)], ids=str)
@pytest.mark.parametrize("block_size", [None, 128])
def test_layer_initialisation_has_the_variance_of_nn_linear(sizes: tuple[int, int], block_size: int | None) -> None:
    for structure in (Circulant(*sizes, block_size), SkewCirculant(*sizes, block_size)):
        (v,) = parameters = parameters_of(structure)
        structure.initialise(parameters)
        assert v.abs().max() <= 1 / math.sqrt(sizes[0])
        y = structure.linear(torch.randn(200, sizes[0], dtype=torch.float64), v)
        assert y.var().item() == pytest.approx(1 / 3, rel=0.15)


@structure_cases
def test_update_initialisation_starts_from_zero_with_gradients_that_are_not(structure: Structure) -> None:
    parameters = parameters_of(structure)
    structure.initialise(parameters, "update")
    assert (structure.dense(*parameters) == 0).all()
    for p in parameters:
        p.requires_grad_()
    structure.linear(torch.randn(3, structure.in_features, dtype=torch.float64), *parameters).sum().backward()
    assert any((p.grad != 0).any() for p in parameters)


def test_surm_initialisations_have_the_papers_and_the_repos_deviation() -> None:
    structure = CirculantProduct(4096, 4096)
    for method, deviation in ((None, 0.02), ("update", 0.02), ("repo", 1.0)):
        r1, r2 = parameters = parameters_of(structure)
        structure.initialise(parameters, method)
        assert (r1 == 0).all()
        assert r2.std().item() == pytest.approx(deviation, rel=0.1)


@structure_cases
def test_initialisation_follows_its_generator(structure: Structure) -> None:
    drawn = []
    for _ in range(2):
        parameters = parameters_of(structure)
        structure.initialise(parameters, generator=torch.Generator().manual_seed(7))
        drawn.append(parameters)
    assert all(map(torch.equal, *drawn))


@structure_cases
def test_structures_copy_pickle_and_show_their_sizes(structure: Structure) -> None:
    for other in (copy.deepcopy(structure), pickle.loads(pickle.dumps(structure))):
        assert repr(other) == repr(structure)
        assert other.parameter_shapes() == structure.parameter_shapes()
    assert f"in_features={structure.in_features}, out_features={structure.out_features}" in repr(structure)


REFUSALS = {
    "no features": (lambda: Circulant(0, 4), ValueError, "in_features must be at least 1, got 0"),
    "features are no int": (lambda: Circulant(4, 4.0), TypeError, "out_features must be an int, got float"),
    "features are a bool": (lambda: Circulant(True, 4), TypeError, "in_features must be an int, got bool"),
    "blocks do not fit": (
        lambda: BlockCirculant(12, 8, 3),
        ValueError,
        "block_size must divide in_features and out_features, got 3 for 12 and 8",
    ),
    "blocks are empty": (lambda: BlockCirculant(12, 8, 0), ValueError, "block_size must be at least 1, got 0"),
    "blocks are no int": (lambda: Circulant(12, 8, "4"), TypeError, "block_size must be an int, got str"),
    "x is too wide": (
        lambda: Circulant(5, 8).linear(torch.zeros(2, 8), torch.zeros(8)),
        ValueError,
        "x must have shape (..., 5), got (2, 8)",
    ),
    "x is a list": (
        lambda: Circulant(5, 8).linear([0.0] * 5, torch.zeros(8)),
        TypeError,
        "x must be a torch.Tensor, got list",
    ),
    "base does not fit": (
        lambda: Circulant(8, 5).linear(torch.zeros(2, 8), torch.zeros(8), base=torch.zeros(2, 8)),
        ValueError,
        "base must be broadcastable to the output's shape (2, 5), got (2, 8)",
    ),
    "weight does not fit": (
        lambda: Circulant(5, 8).nearest(torch.zeros(5, 8)),
        ValueError,
        "weight must have shape (8, 5), got (5, 8)",
    ),
    "initialisation is unknown": (
        lambda: Circulant(8, 8).initialise([torch.zeros(8)], "zeros"),
        ValueError,
        "method must be one of layer, update, got 'zeros'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_by_name_value_and_wish(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error) as refusal:
        call()
    assert str(refusal.value) == message


def test_a_structure_without_projection_says_so() -> None:
    class Diagonal(Structure):
        initialisations = ("update",)

        def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
            return {"d": (self.in_features,)}

        def _initialise(self, parameters, method, generator) -> None:
            parameters[0].zero_()

        def linear(self, x, *parameters, base=None, scale=1.0):
            return scale * x * parameters[0] + (0 if base is None else base)

        def dense(self, *parameters):
            return torch.diag(parameters[0])

    with pytest.raises(NotImplementedError, match="nearest Diagonal"):
        Diagonal(4, 4).nearest(torch.zeros(4, 4))
