"""Nearest projections: means over tied entries, singular vectors, alternating least squares, and what has none."""

import pytest
import torch
from torch import Tensor

from surm_kernels import dense
from surm_kernels.nn import (
    CauchyLikeLinear,
    HankelLikeLinear,
    HydraLinear,
    KroneckerLinear,
    LowRankLinear,
    ToeplitzLikeLinear,
    ToeplitzLinear,
    VandermondeLikeLinear,
    VandermondeLinear,
)
from surm_kernels.structures import (
    CauchyLike,
    Hankel,
    HankelLike,
    Hydra,
    Kronecker,
    LowRank,
    SymmetricToeplitz,
    Toeplitz,
    ToeplitzLike,
    ToeplitzProduct,
    Vandermonde,
    VandermondeLike,
)
from tests import oracle

SHAPES = ((1, 1), (1, 6), (6, 1), (12, 12), (5, 9), (9, 4))  # (in_features, out_features)


def weight_of(in_features: int, out_features: int) -> Tensor:
    return torch.randn(out_features, in_features, dtype=torch.float64)


# Means


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_toeplitz_matrix_has_the_mean_of_each_diagonal(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    (t,) = Toeplitz(*shape).nearest(weight)
    n, m = shape
    oracle.assert_close(t, torch.stack([weight.diagonal(-k).mean() for k in range(-(n - 1), m)]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_hankel_matrix_has_the_mean_of_each_antidiagonal(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    (h,) = Hankel(*shape).nearest(weight)
    n, m = shape
    oracle.assert_close(h, torch.stack([weight.flip(1).diagonal(n - 1 - k).mean() for k in range(m + n - 1)]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_symmetric_toeplitz_matrix_has_the_mean_of_both_diagonals_present(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    (t,) = SymmetricToeplitz(*shape).nearest(weight)
    sides = [torch.cat([weight.diagonal(k), weight.diagonal(-k)]) for k in range(max(shape))]
    oracle.assert_close(t, torch.stack([side.mean() for side in sides]))


def test_blocks_are_projected_each_by_itself() -> None:
    weight = weight_of(12, 8)
    for structure, single in ((Toeplitz(12, 8, 4), Toeplitz(4, 4)), (Hankel(12, 8, 4), Hankel(4, 4))):
        (t,) = structure.nearest(weight)
        blocks = weight.view(2, 4, 3, 4).transpose(1, 2)
        for p in range(2):
            for q in range(3):
                oracle.assert_close(t[p, q], single.nearest(blocks[p, q])[0])


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("sizes", [(12, 12), (12, 8), (4, 12)], ids=str)
@pytest.mark.parametrize("kind", ["circulant", "toeplitz", "hankel"])
def test_the_nearest_hydra_has_the_mean_over_all_entries_of_a_value(
    kind: str, sizes: tuple[int, int], share: float
) -> None:
    structure = Hydra(*sizes, structure=kind, pool_size=10, fixed_fraction=share)
    weight = weight_of(*sizes)
    (pool,) = structure.nearest(weight)
    size = len(pool)
    # Which value fills an entry: the values' numbers in place of the values.
    names = structure.dense(torch.arange(1.0, size + 1, dtype=torch.float64)).round()
    for value in range(size):
        oracle.assert_close(pool[value], weight[names == value + 1].mean())


def test_a_value_that_fills_no_entry_becomes_zero() -> None:
    structure = Hydra(8, 8, structure="toeplitz")
    (pool,) = structure.nearest(torch.ones(8, 8))
    assert structure.slots == 16 * 4
    assert (pool == 1).sum() == 16 * 3
    assert (pool == 0).sum() == 16  # the corner of each row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "structure",
    [Toeplitz(64, 96), Hankel(64, 96, 32), SymmetricToeplitz(64, 96), Hydra(64, 96, pool_size=100)],
    ids=lambda structure: type(structure).__name__,
)
def test_means_keep_the_type_and_round_once(structure, dtype: torch.dtype) -> None:
    weight = torch.randn(96, 64).to(dtype)
    (t,) = structure.nearest(weight)
    (exact,) = structure.nearest(weight.double())
    assert t.dtype == dtype
    oracle.assert_close(t, exact)


# Singular vectors


@pytest.mark.parametrize("shape", [*SHAPES, (24, 18)], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_nearest_low_rank_matrix_leaves_the_smaller_singular_values(shape: tuple[int, int], rank: int) -> None:
    weight = weight_of(*shape)
    A, B = LowRank(*shape, rank).nearest(weight)
    assert A.shape == (rank, shape[0])
    assert B.shape == (shape[1], rank)
    left = torch.linalg.svdvals(weight)[rank:].norm()
    assert torch.isclose((weight - B @ A).norm(), left, atol=1e-12 * weight.norm())
    product = B @ A
    oracle.assert_close(dense.low_rank(*LowRank(*shape, rank).nearest(product)), product)


@pytest.mark.parametrize("left_shape", [None, (1, 1), (4, 3), (2, 12), (8, 1)], ids=str)
def test_the_nearest_kronecker_product_is_the_best_pair_of_factors(left_shape: tuple[int, int] | None) -> None:
    structure = Kronecker(12, 8, left_shape)
    weight = weight_of(12, 8)
    A, B = structure.nearest(weight)
    (p, q), (r, s) = A.shape, B.shape
    blocks = torch.stack([weight[i * r : i * r + r, j * s : j * s + s].flatten() for i in range(p) for j in range(q)])
    left = torch.linalg.svdvals(blocks)[1:].norm()
    assert torch.isclose((weight - oracle.kronecker(A, B)).norm(), left, atol=1e-12 * weight.norm())
    assert torch.isclose(A.norm(), B.norm())
    product = oracle.kronecker(A, B)
    oracle.assert_close(dense.kronecker(*structure.nearest(product)), product)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_factors_keep_the_type(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 12).to(dtype)
    for structure in (LowRank(12, 8, 2), Kronecker(12, 8)):
        rounded, exact = structure.nearest(weight), structure.nearest(weight.double())
        assert all(t.dtype == dtype for t in rounded)
        wanted = structure.dense(*exact)
        # Each of two factors is rounded to half an eps.
        allowed = torch.finfo(dtype).eps + oracle.FLOAT32_TOLERANCE
        assert oracle.error(structure.dense(*(t.double() for t in rounded)), wanted) < allowed


# Alternating least squares


def distance(structure: ToeplitzLike, parameters: tuple[Tensor, ...], weight: Tensor) -> float:
    return ((structure.dense(*parameters) - weight).norm() / weight.norm()).item()


@pytest.mark.parametrize("n", [1, 2, 5, 12, 63, 97])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_toeplitz_like_matrix_comes_back(n: int, rank: int) -> None:
    G, H = torch.randn(2, rank, n, dtype=torch.float64)
    matrix = oracle.toeplitz_like(G, H)
    structure = ToeplitzLike(n, n, rank)
    assert distance(structure, structure.nearest(matrix), matrix) < 1e-13


def test_matrices_of_known_displacement_rank_come_back_at_that_rank() -> None:
    n = 24
    c, t = torch.randn(n, dtype=torch.float64), torch.randn(2 * n - 1, dtype=torch.float64)
    first, second = (oracle.symmetric_toeplitz(t) for t in torch.randn(2, n, dtype=torch.float64))
    for rank, matrix in ((1, oracle.f_circulant(c, 1)), (2, oracle.toeplitz(t, n)), (4, second @ first)):
        structure = ToeplitzLike(n, n, rank)
        assert distance(structure, structure.nearest(matrix), matrix) < 1e-13
        if rank > 1:
            lower = ToeplitzLike(n, n, rank - 1)
            assert distance(lower, lower.nearest(matrix), matrix) > 1e-2


@pytest.mark.parametrize("rank", [1, 3])
def test_the_distance_never_increases_and_is_the_one_reached(rank: int) -> None:
    weight = weight_of(48, 48)
    structure = ToeplitzLike(48, 48, rank)
    rounds: list[tuple[int, float]] = []
    parameters = structure.nearest(weight, iterations=40, tolerance=0, progress=lambda *now: rounds.append(now))
    numbers, distances = zip(*rounds, strict=True)
    assert list(numbers) == list(range(1, len(numbers) + 1))
    assert len(numbers) == 40
    assert list(distances) == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(distance(structure, parameters, weight), rel=1e-12)
    start = structure.nearest(weight, iterations=0)
    assert distances[0] < 0.97 * distance(structure, start, weight)


def test_the_start_is_the_truncated_displacement() -> None:
    weight = weight_of(20, 20)
    structure = ToeplitzLike(20, 20, 2)
    displacement = weight.roll(1, 0) - torch.cat([weight[:, 1:], -weight[:, :1]], 1)
    U, S, V = torch.linalg.svd(displacement)
    G, H = 0.5 * (U[:, :2] * S[:2]).T, V[:2].flip(1)
    oracle.assert_close(structure.dense(*structure.nearest(weight, iterations=0)), oracle.toeplitz_like(G, H))


def test_rounds_end_at_the_tolerance_and_the_same_weight_gives_the_same_bits() -> None:
    weight = weight_of(32, 32)
    structure = ToeplitzLike(32, 32, 2)
    rounds: list[float] = []
    first = structure.nearest(weight, tolerance=1e-2, progress=lambda _, distance: rounds.append(distance))
    assert 1 < len(rounds) < 100
    assert rounds[-2] - rounds[-1] <= 1e-2 * rounds[-1]
    assert all(map(torch.equal, first, structure.nearest(weight, tolerance=1e-2)))


def test_the_result_is_stationary() -> None:
    weight = weight_of(10, 10)
    structure = ToeplitzLike(10, 10, 2)
    parameters = structure.nearest(weight, iterations=2000, tolerance=0)
    gradients = torch.func.grad(lambda ps: (structure.dense(*ps) - weight).square().sum())(parameters)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        assert gradient.norm() * parameter.norm() < 1e-4 * weight.square().sum()


def test_a_zero_matrix_and_a_rank_above_the_size_are_no_trouble() -> None:
    structure = ToeplitzLike(6, 6, 8)
    assert all((t == 0).all() for t in structure.nearest(torch.zeros(6, 6)))
    weight = weight_of(6, 6)
    assert distance(structure, structure.nearest(weight), weight) < 1e-13


# Layers and refusals


@pytest.mark.parametrize(
    ("layer_class", "options"),
    [(ToeplitzLikeLinear, {"rank": 2}), (LowRankLinear, {"rank": 2}), (KroneckerLinear, {}), (ToeplitzLinear, {})],
)
def test_layers_come_from_linear_layers_by_their_projection(layer_class, options: dict) -> None:
    linear = torch.nn.Linear(12, 12)
    layer = layer_class.from_linear(linear, **options)
    wanted = layer.structure.nearest(linear.weight.detach())
    assert all(map(torch.equal, layer.structured_parameters(), wanted))
    assert torch.equal(layer.bias, linear.bias)


WITHOUT = {
    "toeplitz product": (ToeplitzProduct(6, 6), "the nearest ToeplitzProduct to a matrix has no known formula"),
    "hankel-like": (HankelLike(6, 6, 2), "the nearest HankelLike to a matrix has no known formula"),
    "vandermonde": (Vandermonde(6, 6), "the nearest Vandermonde to a matrix has no known formula"),
    "vandermonde-like": (VandermondeLike(6, 6, 2), "the nearest VandermondeLike to a matrix has no known formula"),
    "cauchy-like": (CauchyLike(6, 6, 2), "the nearest CauchyLike to a matrix has no known formula"),
    "rectangular": (ToeplitzLike(6, 4, 2), "the nearest rectangular ToeplitzLike to a matrix has no known formula"),
    "hydra": (
        Hydra(8, 8, structure="vandermonde"),
        "the nearest Hydra of structure vandermonde to a matrix has no known formula",
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_structures_without_projection_say_so(name: str) -> None:
    structure, message = WITHOUT[name]
    with pytest.raises(NotImplementedError) as refusal:
        structure.nearest(torch.zeros(structure.out_features, structure.in_features))
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("layer_class", "options"),
    [
        (HankelLikeLinear, {"rank": 2}),
        (VandermondeLinear, {}),
        (VandermondeLikeLinear, {"rank": 2}),
        (CauchyLikeLinear, {"rank": 2}),
        (HydraLinear, {"structure": "low_rank", "rank": 2}),
    ],
)
def test_layers_without_projection_say_so(layer_class, options: dict) -> None:
    with pytest.raises(NotImplementedError, match="to a matrix has no known formula"):
        layer_class.from_linear(torch.nn.Linear(8, 8), **options)


@pytest.mark.parametrize("structure", [Toeplitz(8, 4), Kronecker(8, 4), LowRank(8, 4, 2), Hydra(8, 4)], ids=repr)
def test_weights_of_another_shape_are_refused(structure) -> None:
    with pytest.raises(ValueError, match=r"weight must have shape \(4, 8\), got \(8, 4\)"):
        structure.nearest(torch.zeros(8, 4))
