"""Structures: shapes and counts, products and matrices of any shape, initialisation and nearest projection."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from surm_kernels.structures import (
    BlockCirculant,
    CauchyLike,
    Circulant,
    CirculantDiagonal,
    CirculantProduct,
    Hankel,
    HankelLike,
    Hydra,
    Kronecker,
    LowRank,
    Monarch,
    Siva,
    SkewCirculant,
    Structure,
    SymmetricToeplitz,
    Toeplitz,
    ToeplitzLike,
    ToeplitzProduct,
    Vandermonde,
    VandermondeLike,
)
from tests import oracle

# Their matrices are a linear space, with a projection to it.
LINEAR = {
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
    "toeplitz": Toeplitz(12, 12),
    "toeplitz, wide": Toeplitz(12, 5),
    "toeplitz, tall": Toeplitz(1, 6),
    "toeplitz, blocks": Toeplitz(12, 8, block_size=4),
    "symmetric toeplitz": SymmetricToeplitz(12, 12),
    "symmetric toeplitz, wide": SymmetricToeplitz(7, 3),
    "symmetric toeplitz, tall": SymmetricToeplitz(5, 9),
    "hankel": Hankel(12, 12),
    "hankel, wide": Hankel(9, 4),
    "hankel, tall": Hankel(2, 7),
    "hankel, blocks": Hankel(6, 9, block_size=3),
    "hydra, circulant": Hydra(12, 8, structure="circulant"),
    "hydra, toeplitz": Hydra(8, 8, structure="toeplitz", pool_size=11),
    "hydra, hankel": Hydra(6, 9, splits=3, structure="hankel", pool_size=20),
}
OTHERS = {
    "circulant diagonal": CirculantDiagonal(8, 8),
    "circulant diagonal, wide": CirculantDiagonal(9, 4, factors=3),
    "circulant diagonal, tall": CirculantDiagonal(3, 8),
    "monarch": Monarch(12, 12),
    "monarch, wide": Monarch(12, 8, blocks=3, inner_blocks=2),
    "monarch, tall": Monarch(4, 10),
    "toeplitz product": ToeplitzProduct(7, 7),
    "toeplitz product, wide": ToeplitzProduct(9, 4),
    "toeplitz product, tall": ToeplitzProduct(3, 8),
    "toeplitz-like": ToeplitzLike(8, 8, 3),
    "toeplitz-like, wide": ToeplitzLike(9, 4, 1),
    "toeplitz-like, tall": ToeplitzLike(3, 8, 2),
    "hankel-like": HankelLike(8, 8, 3),
    "hankel-like, wide": HankelLike(9, 4, 1),
    "hankel-like, tall": HankelLike(3, 8, 2),
    "vandermonde": Vandermonde(7, 7),
    "vandermonde, wide": Vandermonde(9, 4),
    "vandermonde, tall": Vandermonde(1, 8),
    "vandermonde-like": VandermondeLike(7, 7, 2),
    "vandermonde-like, wide": VandermondeLike(9, 4, 1),
    "cauchy-like": CauchyLike(7, 7, 2),
    "cauchy-like, tall": CauchyLike(4, 9, 1),
    "kronecker": Kronecker(12, 12),
    "kronecker, wide": Kronecker(12, 8),
    "kronecker, a prime": Kronecker(7, 6),
    "kronecker, chosen": Kronecker(12, 8, left_shape=(2, 6)),
    "low rank": LowRank(12, 12, 3),
    "low rank, tall": LowRank(3, 8, 4),
    "siva": Siva(12, 12, 5),
    "siva, wide": Siva(9, 4, 4, basis="top"),
    "siva, tall": Siva(3, 8, 1, basis="random", seed=7),
    "one number, toeplitz-like": ToeplitzLike(1, 1, 1),
    "hydra, fixed share": Hydra(8, 12, structure="toeplitz", pool_size=20, fixed_fraction=0.4),
    "hydra, vandermonde": Hydra(8, 12, structure="vandermonde", pool_size=10),
    "hydra, low rank": Hydra(8, 4, splits=1, structure="low_rank", rank=2),
    "hydra, toeplitz-like": Hydra(4, 6, splits=2, structure="toeplitz_like", rank=1, fixed_fraction=0.3),
}
STRUCTURES = LINEAR | OTHERS
structure_cases = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
linear_cases = pytest.mark.parametrize("structure", LINEAR.values(), ids=LINEAR.keys())
UPDATES = {name: structure for name, structure in STRUCTURES.items() if "paper" in structure.initialisations}
update_cases = pytest.mark.parametrize("structure", UPDATES.values(), ids=UPDATES.keys())


def parameters_of(structure: Structure, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    parameters = [torch.randn(shape, dtype=dtype) for shape in structure.parameter_shapes().values()]
    if isinstance(structure, (Vandermonde, VandermondeLike, CauchyLike)):
        structure.initialise(parameters)  # nodes where powers and poles are tame
    return parameters


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


def test_rectangular_structures_of_square_ones_are_their_top_left() -> None:
    t, u = torch.randn(2, 9, dtype=torch.float64)
    G, H = torch.randn(2, 2, 9, dtype=torch.float64)
    product = oracle.symmetric_toeplitz(u) @ oracle.symmetric_toeplitz(t)
    for in_features, out_features in ((5, 9), (9, 4), (9, 9)):
        part = slice(out_features), slice(in_features)
        sizes = in_features, out_features
        oracle.assert_close(SymmetricToeplitz(*sizes).dense(t), oracle.symmetric_toeplitz(t)[part])
        oracle.assert_close(ToeplitzProduct(*sizes).dense(t, u), product[part])
        oracle.assert_close(ToeplitzLike(*sizes, 2).dense(G, H), oracle.toeplitz_like(G, H)[part])
        oracle.assert_close(HankelLike(*sizes, 2).dense(G, H), oracle.hankel_like(G, H)[part])


def test_rectangular_structures_by_nature_have_the_formulas_of_the_oracle() -> None:
    parameters = parameters_of(Toeplitz(5, 8))
    assert torch.equal(Toeplitz(5, 8).dense(*parameters), oracle.toeplitz(*parameters, 5))
    assert torch.equal(Hankel(5, 8).dense(*parameters), oracle.hankel(*parameters, 5))
    blocks = torch.randn(2, 3, 7, dtype=torch.float64)
    assert torch.equal(Toeplitz(12, 8, 4).dense(blocks), oracle.toeplitz(blocks, 4))
    assert torch.equal(Hankel(12, 8, 4).dense(blocks), oracle.hankel(blocks, 4))
    for structure, formula in (
        (Vandermonde(5, 8), lambda v: oracle.vandermonde(v, 5)),
        (VandermondeLike(5, 8, 3), oracle.vandermonde_like),
        (CauchyLike(5, 8, 3), oracle.cauchy_like),
        (Kronecker(12, 18), oracle.kronecker),
        (LowRank(5, 8, 3), oracle.low_rank),
    ):
        parameters = parameters_of(structure)
        oracle.assert_close(structure.dense(*parameters), formula(*parameters))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "structure", [ToeplitzProduct(96, 64), ToeplitzProduct(64, 64), SymmetricToeplitz(64, 96)], ids=repr
)
def test_compositions_round_16_bit_answers_once(structure: Structure, dtype: torch.dtype) -> None:
    parameters = parameters_of(structure, dtype)
    matrix = structure.dense(*(p.double() for p in parameters))
    oracle.assert_close(structure.dense(*parameters), matrix)
    x, base = torch.randn(33, structure.in_features).to(dtype), torch.randn(structure.out_features).to(dtype)
    y = structure.linear(x, *parameters, base=base, scale=0.5)
    oracle.assert_close(y, base.double() + 0.5 * x.double() @ matrix.T)


def test_circulant_product_is_elementwise() -> None:
    r1, r2 = torch.randn(2, 12, dtype=torch.float64)
    product = CirculantProduct(12, 12).dense(r1, r2)
    assert torch.allclose(product, oracle.f_circulant(r1, 1) * oracle.f_circulant(r2, 1))


@structure_cases
def test_count_is_what_the_trained_parameters_hold(structure: Structure) -> None:
    named = zip(structure.parameter_shapes(), parameters_of(structure), strict=True)
    assert structure.count() == sum(p.numel() for name, p in named if name not in structure.constants)


def test_counts_of_the_paper_come_out_exactly() -> None:
    surm = CirculantProduct(768, 768)
    assert surm.count() == 1536
    assert 12 * 3 * surm.count() == 55_296  # query, key and value of BERT-base or ViT-B
    assert 12 * 2 * surm.count() == 36_864  # query and value
    assert Circulant(768, 3072).count() == 3072
    assert BlockCirculant(768, 768, 128).count() == 6 * 6 * 128
    assert CirculantProduct(768, 3072, block_size=768).count() == 2 * 4 * 768
    for update in (CirculantProduct(768, 768), ToeplitzProduct(768, 768), Kronecker(768, 768)):
        assert 12 * 3 * update.count() == 55_296
        assert 12 * 2 * update.count() == 36_864  # an adapter, two a layer, without bias
        assert 12 * 2 * (update.count() + 768) == 55_296  # with bias
    assert ToeplitzLike(4096, 4096, 4).count() == 32_768  # a matrix of Llama-2-7B


def test_counts_follow_from_the_sizes() -> None:
    assert Toeplitz(768, 3072).count() == 768 + 3072 - 1
    assert Toeplitz(768, 3072, 384).count() == 2 * 8 * 767
    assert SymmetricToeplitz(768, 3072).count() == 3072
    assert HankelLike(768, 3072, 2).count() == 2 * 2 * 3072
    assert Vandermonde(768, 3072).count() == 3072
    assert VandermondeLike(768, 3072, 2).count() == 3072 + 2 * (768 + 3072)
    assert CauchyLike(768, 3072, 2).count() == 3 * (768 + 3072)
    assert LowRank(768, 3072, 8).count() == 8 * (768 + 3072)


def test_kronecker_factors_are_near_the_square_roots_of_the_sizes() -> None:
    assert Kronecker(768, 768).parameter_shapes() == {"A": (32, 24), "B": (24, 32)}
    assert Kronecker(4096, 4096).parameter_shapes() == {"A": (64, 64), "B": (64, 64)}
    assert Kronecker(768, 3072).parameter_shapes() == {"A": (64, 24), "B": (48, 32)}
    assert Kronecker(7, 11).parameter_shapes() == {"A": (11, 1), "B": (1, 7)}
    assert Kronecker(12, 8, left_shape=(2, 6)).parameter_shapes() == {"A": (2, 6), "B": (4, 2)}


@linear_cases
def test_nearest_gives_back_a_matrix_of_the_structure(structure: Structure) -> None:
    matrix = structure.dense(*parameters_of(structure))
    oracle.assert_close(structure.dense(*structure.nearest(matrix)), matrix)


@linear_cases
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


OF_THE_VARIANCE_OF_NN_LINEAR = {
    "toeplitz": Toeplitz,
    "toeplitz, blocks": lambda *sizes: Toeplitz(*sizes, 48),
    "symmetric toeplitz": SymmetricToeplitz,
    "toeplitz product": ToeplitzProduct,
    "hankel": Hankel,
    "toeplitz-like": lambda *sizes: ToeplitzLike(*sizes, 3),
    "hankel-like": lambda *sizes: HankelLike(*sizes, 3),
    "vandermonde-like": lambda *sizes: VandermondeLike(*sizes, 3),
    "cauchy-like": lambda *sizes: CauchyLike(*sizes, 3),
    "kronecker": Kronecker,
    "low rank": lambda *sizes: LowRank(*sizes, 3),
    "siva": lambda *sizes: Siva(*sizes, 40),
    "hydra, circulant": lambda *sizes: Hydra(*sizes, structure="circulant"),
    "hydra, toeplitz": lambda *sizes: Hydra(*sizes, structure="toeplitz"),
    "hydra, hankel": lambda *sizes: Hydra(*sizes, structure="hankel"),
}


@pytest.mark.parametrize("sizes", [(192, 192), (96, 384), (384, 96)], ids=str)
@pytest.mark.parametrize("name", OF_THE_VARIANCE_OF_NN_LINEAR)
def test_layer_initialisation_has_on_average_the_variance_of_nn_linear(name: str, sizes: tuple[int, int]) -> None:
    structure = OF_THE_VARIANCE_OF_NN_LINEAR[name](*sizes)
    variances = []
    for _ in range(40):
        parameters = parameters_of(structure)
        structure.initialise(parameters, "layer")
        # Of outputs for x of variance 1.
        variances.append(structure.dense(*parameters).square().sum(1).mean())
    assert torch.stack(variances).mean().item() == pytest.approx(1 / 3, rel=0.15)


def test_vandermonde_outputs_start_with_a_variance_between_1_and_2() -> None:
    structure = Vandermonde(96, 384)
    parameters = parameters_of(structure)
    structure.initialise(parameters, "layer")
    variances = structure.dense(*parameters).square().sum(1)
    assert variances.min() >= 1
    assert variances.max() < 1.97


@update_cases
def test_update_initialisation_starts_from_zero_with_gradients_that_are_not(structure: Structure) -> None:
    parameters = parameters_of(structure)
    structure.initialise(parameters, "paper")
    # A linear kind of HyDRA has its fixed values.
    assert (structure.dense(*parameters) == 0).all() or structure is STRUCTURES["hydra, fixed share"]
    for p in parameters:
        p.requires_grad_()
    structure.linear(torch.randn(3, structure.in_features, dtype=torch.float64), *parameters).sum().backward()
    assert any((p.grad != 0).any() for p in parameters)


def test_surm_initialisations_have_the_papers_and_the_repos_deviation() -> None:
    structure = CirculantProduct(4096, 4096)
    for method, deviation in ((None, 0.02), ("paper", 0.02), ("repo", 1.0)):
        r1, r2 = parameters = parameters_of(structure)
        structure.initialise(parameters, method)
        assert (r1 == 0).all()
        assert r2.std().item() == pytest.approx(deviation, rel=0.1)


def test_updates_of_two_factors_start_with_one_at_zero_and_one_of_the_papers_deviation() -> None:
    for structure, zero, drawn in (
        (ToeplitzProduct(1024, 1024), "t1", "t2"),
        (ToeplitzLike(512, 512, 2), "G", "H"),
        (HankelLike(512, 512, 2), "G", "H"),
        (VandermondeLike(512, 512, 2), "G", "H"),
        (CauchyLike(512, 512, 2), "G", "H"),
        (Kronecker(1024, 1024), "A", "B"),
    ):
        parameters = parameters_of(structure)
        structure.initialise(parameters, "paper")
        by_name = dict(zip(structure.parameter_shapes(), parameters, strict=True))
        assert (by_name[zero] == 0).all()
        assert by_name[drawn].std().item() == pytest.approx(0.02, rel=0.1)


def test_low_rank_and_kronecker_updates_start_as_their_authors_code_does() -> None:
    A, B = parameters_of(LowRank(256, 128, 8))
    LowRank(256, 128, 8).initialise([A, B], "paper")
    assert (B == 0).all()
    assert 0.95 / 16 < A.abs().max() <= 1 / 16
    A, B = parameters_of(Kronecker(768, 768))
    Kronecker(768, 768).initialise([A, B], "repo")
    assert (B == 0).all()
    assert 0.95 / 24**0.5 < A.abs().max() <= 1 / 24**0.5


def test_cauchy_nodes_start_apart_in_every_type() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        v, u, _, _ = parameters = parameters_of(CauchyLike(300, 200, 1), dtype)
        CauchyLike(300, 200, 1).initialise(parameters)
        assert v.min() >= 1
        assert u.max() <= -1


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
        "x must have shape (..., 5) to go with c of shape (8,), got (2, 8)",
    ),
    "x is too wide for a toeplitz matrix": (
        lambda: Toeplitz(5, 8).linear(torch.zeros(2, 8), torch.zeros(12)),
        ValueError,
        "x must have shape (..., 5) to go with t of shape (12,), got (2, 8)",
    ),
    "rank is zero": (lambda: ToeplitzLike(5, 8, 0), ValueError, "rank must be at least 1, got 0"),
    "rank is no int": (lambda: LowRank(5, 8, 2.0), TypeError, "rank must be an int, got float"),
    "toeplitz blocks do not fit": (
        lambda: Toeplitz(12, 8, 3),
        ValueError,
        "block_size must divide in_features and out_features, got 3 for 12 and 8",
    ),
    "left shape does not fit": (
        lambda: Kronecker(12, 8, (3, 4)),
        ValueError,
        "left_shape must divide (out_features, in_features), got (3, 4) for (8, 12)",
    ),
    "left shape is no pair": (
        lambda: Kronecker(12, 8, (2,)),
        ValueError,
        "left_shape must be a pair (p, q), got (2,)",
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
        "method must be one of layer, paper, got 'zeros'",
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
        initialisations = ("paper",)

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
