"""SiVA: the perc rule, bases, fingerprints and effective rank, its theorems, the structure and its layer."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from torch import Tensor

from surm_kernels import _random_words, siva
from surm_kernels.command.demo import requirements
from surm_kernels.nn import SivaLinear
from surm_kernels.structures import Siva
from surm_kernels.structures.random_integers import RandomIntegers
from tests import oracle

SHAPES = ((1, 1), (1, 6), (6, 1), (12, 12), (5, 97), (63, 12))  # of the weight, (out_features, in_features)
shape_cases = pytest.mark.parametrize("shape", SHAPES, ids=str)
basis_cases = pytest.mark.parametrize("basis", siva.BASES)

# Golden values: they may never change.
FINGERPRINT_OF_IDENTITIES = [1, 1, -3, -1, -1, -1, -1, 1, 1, 3, 1, 1, 1, -1, 1, 1, 1, 1, -1, -1, -3, -1, -3, -3]
RANDOM_LEFT_OF_SEED_4 = [[-0.1538, 0.9739], [0.9589, 0.1878], [-0.2382, 0.1272]]
RANDOM_RIGHT_OF_SEED_4 = [[0.7550, -0.3595], [-0.4866, 0.2533], [0.4395, 0.8981]]


def weight_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def matrix_of(singular_values: Tensor) -> Tensor:
    """A square matrix with these singular values and random singular vectors."""
    size = len(singular_values)
    U, V = (torch.linalg.qr(weight_of(size, size)).Q for _ in range(2))
    return (U * singular_values) @ V.T


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(weight_of(size, size)).Q


def change(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """|W - W'| / |W| of W = U diag(s) V^T, root mean square over random s, by its formula."""
    (U, V), (other_U, other_V) = ((U.double(), V.double()) for U, V in (ours, theirs))
    pairs = torch.einsum("ik,jk->kij", U, V), torch.einsum("ik,jk->kij", other_U, other_V)
    return ((pairs[0] - pairs[1]).norm() / pairs[0].norm()).item()


def estimated_change(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    return siva.difference(siva.fingerprint(*ours), siva.fingerprint(*theirs))


@pytest.fixture(scope="module")
def minilm_weights() -> dict[str, Tensor]:
    """The query and value weights of MiniLM, 12 of 384 x 384."""
    safetensors = pytest.importorskip("safetensors.torch")
    if not requirements.is_installed(requirements.MODEL_PACKAGE):
        pytest.skip(f"the package {requirements.MODEL_PACKAGE} is not installed")
    tensors = safetensors.load_file(requirements.model_folder() / "model.safetensors")
    return {name: t for name, t in tensors.items() if name.endswith(("query.weight", "value.weight"))}


# The decomposition


@shape_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_decomposition_gives_back_its_matrix_in_float64_whatever_the_type(shape, dtype: torch.dtype) -> None:
    weight = weight_of(*shape, dtype=dtype)
    found = siva.decompose(weight)
    rank = min(shape)
    assert (found.U.shape, found.singular_values.shape, found.V.shape) == ((shape[0], rank), (rank,), (shape[1], rank))
    oracle.assert_close((found.U * found.singular_values) @ found.V.T, weight.double())
    assert (found.singular_values.diff() <= 0).all()
    for columns in (found.U, found.V):
        assert columns.dtype == torch.float64
        oracle.assert_close(columns.T @ columns, torch.eye(rank, dtype=torch.float64))


def test_a_decomposition_in_float32_has_the_errors_of_float32() -> None:
    weight = weight_of(63, 40)
    found = siva.decompose(weight, precision="float32")
    assert found.U.dtype == found.singular_values.dtype == found.V.dtype == torch.float32
    oracle.assert_close((found.U * found.singular_values) @ found.V.T, weight)


@shape_cases
def test_the_largest_entry_of_every_left_vector_is_positive(shape) -> None:
    weight = weight_of(*shape)
    ours = siva.decompose(weight)
    assert (ours.U.gather(0, ours.U.abs().argmax(0, keepdim=True)) > 0).all()
    # The decomposition of -W differs from that of W by the signs of the right vectors alone.
    theirs = siva.decompose(-weight)
    oracle.assert_close(theirs.U, ours.U)
    oracle.assert_close(theirs.V, -ours.V)


def test_the_zero_matrix_and_one_of_low_rank_have_orthonormal_vectors_too() -> None:
    for weight in (torch.zeros(5, 7, dtype=torch.float64), weight_of(12, 3) @ weight_of(3, 9)):
        found = siva.decompose(weight)
        for columns in (found.U, found.V):
            oracle.assert_close(columns.T @ columns, torch.eye(min(weight.shape), dtype=torch.float64))


# How many values


COUNTS = {
    "squares 9, 4, 1: the first is 0.64": ([3, 2, 1], 0.6, "variance", 2),
    "squares 9, 4, 1: the first two are 0.93": ([3, 2, 1], 0.9, "variance", 1),
    "squares 9, 4, 1: all are needed, one is kept": ([3, 2, 1], 0.95, "variance", 1),
    "values 3, 2, 1: the first is exactly 0.5": ([3, 2, 1], 0.5, "sum", 2),
    "values 3, 2, 1: the first two are 0.83": ([3, 2, 1], 0.6, "sum", 1),
    "equal ones": ([1] * 100, 0.95, "variance", 5),
    "equal ones by values": ([7] * 100, 0.95, "sum", 5),
    "a small share takes one": ([3, 2, 1], 1e-9, "variance", 2),
    "all": ([3, 2, 1], 1, "variance", 1),
    "all, with sums that round": ([0.1] * 1000, 1.0, "sum", 1),
    "all, without a null space": ([3, 2, 0, 0, 0], 1.0, "variance", 3),
    "one value": ([5], 0.95, "variance", 1),
    "zeros": ([0, 0, 0], 0.95, "variance", 2),
}


@pytest.mark.parametrize("case", COUNTS)
def test_the_values_beyond_the_share_perc_are_counted(case: str) -> None:
    singular_values, perc, rule, wanted = COUNTS[case]
    for dtype in (torch.float64, torch.float32):
        assert siva.count(torch.tensor(singular_values, dtype=dtype), perc, rule=rule) == wanted


def test_the_count_follows_its_definition_on_random_spectra() -> None:
    for size, perc in itertools.product((1, 2, 3, 63, 384), (0.3, 0.95, 0.997, 1.0)):
        spectrum = torch.rand(size, dtype=torch.float64).sort(descending=True).values
        for rule, terms in (("variance", [v * v for v in spectrum.tolist()]), ("sum", spectrum.tolist())):
            total = math.fsum(terms)
            r = next(r for r in range(1, size + 1) if r == size or math.fsum(terms[:r]) / total >= perc)
            assert siva.count(spectrum, perc, rule=rule) == max(1, size - r)


def test_the_authors_count_of_24_matrices_comes_out() -> None:
    # Two spectra of 768 values whose first 364 hold 0.95 of the energy, and not the first 363.
    geometric = 0.9919 ** (torch.arange(768, dtype=torch.float64) / 2)
    flat = torch.cat([torch.full((364,), 0.9501 / 364), torch.full((404,), 0.0499 / 404)]).sqrt()
    for spectrum in (geometric, flat):
        assert siva.count(spectrum) == 404
    assert 24 * Siva(768, 768, siva.count(geometric)).count() == 9_696


def test_of_minilm_half_is_adapted_by_squares_and_three_tenths_by_values(minilm_weights) -> None:
    spectra = [siva.decompose(weight).singular_values for weight in minilm_weights.values()]
    assert len(spectra) == 12
    by_squares, by_values = ([siva.count(s, rule=rule) for s in spectra] for rule in siva.RULES)
    assert sum(by_squares) == pytest.approx(12 * 0.50 * 384, rel=0.02)
    assert all(0.44 * 384 < k < 0.54 * 384 for k in by_squares)
    assert sum(by_values) == pytest.approx(12 * 0.29 * 384, rel=0.02)
    assert all(0.26 * 384 < k < 0.32 * 384 for k in by_values)


# Bases


@shape_cases
@basis_cases
def test_bases_are_orthonormal_contiguous_and_in_the_type_of_the_weight(shape, basis: str) -> None:
    for k in {1, min(shape)}:
        for columns, size in zip(siva.bases(weight_of(*shape), k=k, basis=basis), shape, strict=True):
            assert columns.shape == (size, k)
            assert columns.is_contiguous()
            oracle.assert_close(columns.T @ columns, torch.eye(k, dtype=torch.float64))
    for dtype in (torch.float32, torch.bfloat16):
        for columns in siva.bases(weight_of(*shape, dtype=dtype), basis=basis):
            assert columns.dtype == dtype


def test_bottom_and_top_are_the_last_and_the_first_singular_vectors() -> None:
    weight = weight_of(12, 9)
    known = siva.decompose(weight)
    for given in (weight, known):
        bottom, top = siva.bases(given, k=3), siva.bases(given, k=3, basis="top")
        assert torch.equal(bottom[0], known.U[:, 6:])
        assert torch.equal(bottom[1], known.V[:, 6:])
        assert torch.equal(top[0], known.U[:, :3])
        assert torch.equal(top[1], known.V[:, :3])


@basis_cases
def test_without_k_the_spectrum_says_how_many(basis: str) -> None:
    weight = matrix_of(torch.tensor([9, 5, 3, 2, 1, 0.5], dtype=torch.float64))
    wanted = {(0.6, "variance"): 5, (0.9, "variance"): 3, (0.9, "sum"): 2}
    for (perc, rule), k in wanted.items():
        U, V = siva.bases(weight, perc=perc, rule=rule, basis=basis)
        assert U.shape == V.shape == (6, k)


def test_bases_have_memory_of_their_own() -> None:
    known = siva.decompose(weight_of(6, 1))
    U, _ = siva.bases(known, k=1)
    U.zero_()
    assert known.U.any()


def test_random_bases_follow_their_seed_and_not_the_weight_and_have_golden_values() -> None:
    weight, other = weight_of(12, 9), weight_of(12, 9)
    ours = siva.bases(weight, k=4, basis="random", seed=3)
    for given in (other, siva.decompose(weight)):
        assert all(map(torch.equal, ours, siva.bases(given, k=4, basis="random", seed=3)))
    assert change(ours, siva.bases(weight, k=4, basis="random", seed=-3)) > 1
    U, V = siva.bases(torch.eye(3), k=2, basis="random", seed=4)
    assert torch.allclose(U, torch.tensor(RANDOM_LEFT_OF_SEED_4), atol=1e-4)
    assert torch.allclose(V, torch.tensor(RANDOM_RIGHT_OF_SEED_4), atol=1e-4)


def test_random_words_are_those_of_the_integer_generator_and_normals_are_normal() -> None:
    for seed in (0, 1, -1, 1234567, 2**64 + 5):
        integers, normals = RandomIntegers(seed), RandomIntegers(seed)
        assert [word % 2**64 for word in _random_words.words(seed, 4, 5).flatten().tolist()] == [
            integers.word() for _ in range(20)
        ]
        oracle.assert_close(
            _random_words.normals(seed, 20), torch.tensor([normals.normal() for _ in range(20)], dtype=torch.float64)
        )
    signs = _random_words.signs(0, 300, 300)
    assert (signs.abs() == 1).all()
    assert abs(signs.mean().item()) < 5 / 300


# Fingerprints


def test_fingerprints_have_their_golden_values() -> None:
    found = siva.fingerprint(torch.eye(5, 3), torch.eye(4, 3))
    assert found.shape == (64,)
    assert found.dtype == torch.float32
    assert found[:24].tolist() == FINGERPRINT_OF_IDENTITIES


def test_a_fingerprint_does_not_see_the_common_sign_of_a_pair_but_that_of_one_vector() -> None:
    U, V = siva.bases(weight_of(63, 40), k=20)
    signs = torch.where(torch.rand(20, dtype=torch.float64) < 0.5, -1.0, 1.0)
    assert torch.equal(siva.fingerprint(U * signs, V * signs), siva.fingerprint(U, V))
    assert estimated_change((U, V), (U * signs, V)) > 0.5


OTHER_BASES = {
    "one pair of twenty": lambda U, V: (torch.cat([-U[:, :1], U[:, 1:]], 1), V),
    "in another order": lambda U, V: (U.flip(1), V.flip(1)),
    "of other weights": lambda U, V: siva.bases(weight_of(len(U), len(V)), k=U.shape[1]),
    "a little beside": lambda U, V: (U + 1e-3 * torch.randn_like(U), V),
    "in bfloat16": lambda U, V: (U.bfloat16(), V.bfloat16()),
    "in float16": lambda U, V: (U.half(), V.half()),
}


@pytest.mark.parametrize("case", OTHER_BASES)
def test_the_difference_of_fingerprints_estimates_the_change_of_the_update(case: str) -> None:
    ours = siva.bases(weight_of(63, 40), k=20)
    theirs = OTHER_BASES[case](*ours)
    assert estimated_change(ours, theirs) == pytest.approx(change(ours, theirs), rel=0.4)


def test_a_difference_to_what_is_no_fingerprint_is_infinite() -> None:
    ours = siva.fingerprint(*siva.bases(weight_of(12, 9)))
    assert siva.difference(ours, ours) == 0
    assert siva.difference(ours, ours[:10]) == math.inf
    assert siva.difference(ours, ours * math.nan) == math.inf
    assert siva.difference(ours, torch.full_like(ours, math.inf)) == math.inf
    assert siva.difference(torch.zeros(64), ours) == math.inf


def test_the_same_bases_are_told_from_others_on_real_weights(minilm_weights) -> None:
    for name, weight in minilm_weights.items():
        known = siva.decompose(weight)
        ours = siva.bases(known)
        k = ours[0].shape[1]
        V, U = siva.bases(weight.T.double(), k=k)
        assert estimated_change(ours, (U, V)) < 1e-6, f"{name} decomposed again"
        assert estimated_change(ours, tuple(t.bfloat16() for t in ours)) < 0.4 * siva.TOLERANCE
        rounded = siva.bases(weight.bfloat16().double(), k=k)
        assert 5 * siva.TOLERANCE < estimated_change(ours, rounded) < 0.25, f"{name} rounded to bfloat16"


def test_other_bases_of_a_null_space_are_told_from_ours() -> None:
    weight = weight_of(96, 60) @ weight_of(60, 96)
    null = 36
    U, _, Vh = scipy.linalg.svd(weight.numpy(), lapack_driver="gesvd")
    U, V = torch.from_numpy(U.copy()), torch.from_numpy(Vh.T.copy())
    kept = siva.bases(weight, k=60, basis="top")
    assert estimated_change(kept, (U[:, :60], V[:, :60])) < 1e-6
    for k in (null, 59):
        ours, theirs = siva.bases(weight, k=k), (U[:, -k:], V[:, -k:])
        assert estimated_change(ours, theirs) > 50 * siva.TOLERANCE
        assert change(ours, theirs) == pytest.approx((2 * null / k) ** 0.5, rel=0.1)


# Effective rank


def test_effective_rank_counts_equal_values_and_nothing_else() -> None:
    for rank in (1, 2, 5, 12):
        spectrum = torch.cat([torch.full((rank,), 3.0), torch.zeros(12 - rank)]).double()
        assert siva.effective_rank(matrix_of(spectrum)) == pytest.approx(rank, rel=1e-9)
        assert siva.effective_rank(torch.diag(spectrum)[:, :rank].bfloat16()) == pytest.approx(rank, rel=1e-12)
    assert siva.effective_rank(torch.zeros(3, 4)) == 0


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    weight = weight_of(9, 5)
    shares = torch.linalg.svdvals(weight)
    entropy = torch.distributions.Categorical(shares / shares.sum()).entropy()
    assert siva.effective_rank(weight) == pytest.approx(entropy.exp().item(), rel=1e-12)


def test_effective_rank_rises_more_for_the_bottom_than_for_the_top(minilm_weights) -> None:
    decaying = matrix_of(0.9 ** torch.arange(48, dtype=torch.float64))
    weights = {"normal": weight_of(48, 48), "wide": weight_of(20, 70), "decaying": decaying}
    weights |= {name: minilm_weights[name].double() for name in sorted(minilm_weights)[:2]}
    for name, weight in weights.items():
        known = siva.decompose(weight)
        k = siva.count(known.singular_values)
        before = siva.effective_rank(weight)
        rises = {}
        for basis in ("bottom", "top"):
            U, V = siva.bases(known, k=k, basis=basis)
            update = U @ V.T
            rises[basis] = siva.effective_rank(weight + 0.01 * weight.norm() / update.norm() * update) - before
        assert rises["bottom"] > max(rises["top"], 0), name


# The theorems, as first-order statements about the entropy H of the shares sigma / S, S = sum sigma


def entropy(singular_values: Tensor) -> Tensor:
    return torch.special.entr(singular_values / singular_values.sum()).sum()


def slopes(singular_values: Tensor) -> Tensor:
    """c_i = -(log(sigma_i / S) + H) / S"""
    total = singular_values.sum()
    return -((singular_values / total).log() + entropy(singular_values)) / total


def spectrum_of(size: int) -> Tensor:
    return (0.2 + 3 * torch.rand(size, dtype=torch.float64)).sort(descending=True).values


@pytest.mark.parametrize("size", [2, 3, 12, 63])
def test_theorem_1_the_best_change_of_the_spectrum_is_along_the_slopes_of_the_entropy(size: int) -> None:
    sigma, budget = spectrum_of(size), 1e-10
    c = slopes(sigma)
    oracle.assert_close(c, torch.func.grad(entropy)(sigma))
    best = c * budget**0.5 / c.norm()
    gain = budget**0.5 * c.norm()
    assert (c @ best).item() == pytest.approx(gain.item(), rel=1e-12)
    assert (entropy(sigma + best) - entropy(sigma)).item() == pytest.approx(gain.item(), rel=1e-3)
    for _ in range(100):
        other = torch.randn_like(sigma)
        assert c @ (other * budget**0.5 / other.norm()) < gain


@pytest.mark.parametrize("size", [4, 7, 9])
def test_theorem_2_of_k_values_to_raise_the_smallest_gain_most(size: int) -> None:
    sigma = spectrum_of(size)
    c = slopes(sigma)
    assert (c.diff() >= 0).all(), "the smaller a value, the more the entropy gains"
    for k in range(1, int((c > 0).sum()) + 1):
        # Of increments on a set of values that are not negative, the best follow the positive slopes.
        gains = {kept: c[list(kept)].clamp(min=0).norm() for kept in itertools.combinations(range(size), k)}
        assert max(gains, key=gains.get) == tuple(range(size - k, size))


def test_theorem_2_needs_increments_since_lowering_a_dominant_value_may_gain_more() -> None:
    c = slopes(torch.tensor([2, 1, 1, 1, 1], dtype=torch.float64))
    assert c[0] < 0
    assert c[0].abs() > c[1:].max()


@pytest.mark.parametrize("size", [3, 12, 40])
def test_theorem_3_aligned_vectors_gain_more_than_rotated_ones(size: int) -> None:
    sigma = spectrum_of(size)
    weight = matrix_of(sigma)
    known = siva.decompose(weight)
    c = slopes(known.singular_values)
    slope_of_weight = torch.func.grad(lambda W: entropy(torch.linalg.svdvals(W)))(weight)
    assert torch.allclose(slope_of_weight, (known.U * c) @ known.V.T, atol=1e-12)
    k = max(1, int((c > 0).sum()) // 2)
    for basis, values in (("bottom", c[-k:]), ("top", c[:k])):
        U, V = siva.bases(known, k=k, basis=basis)
        values = 1e-4 * values / values.norm()
        aligned = (U * values) @ V.T
        gain = (slope_of_weight * aligned).sum()
        assert gain > 0
        assert siva.effective_rank(weight + aligned) > siva.effective_rank(weight)
        for turn in (rotation, lambda k: -torch.eye(k, dtype=torch.float64)):
            rotated = (U @ turn(k) * values) @ V.T
            assert (slope_of_weight * rotated).sum() <= gain * (1 + 1e-12)
        anywhere = (rotation(size)[:, :k] * values) @ rotation(size)[:, :k].T
        assert (slope_of_weight * anywhere).sum() < 1e-4 * c.norm()


@pytest.mark.parametrize("size", [1, 2, 12, 63])
def test_theorem_4_one_input_is_sent_to_any_output_exactly(size: int) -> None:
    weight = weight_of(size, size) + 3 * size**0.5 * torch.eye(size, dtype=torch.float64)
    x, y = weight_of(size), weight_of(size)
    known = siva.decompose(weight)
    s = (known.U.T @ y) / (known.V.T @ x) - known.singular_values
    structure = Siva(size, size, size)
    U, V = structure.prepare(weight)
    scale = (s.abs() * (known.V.T @ x).abs()).norm().item()
    oracle.assert_close(structure.linear(x, U, s, V, base=weight @ x), y, size=10 * scale)


# The structure and its layer


@shape_cases
@basis_cases
def test_prepare_gives_the_bases_and_nearest_the_best_values_for_them(shape, basis: str) -> None:
    rows, columns = shape
    k = max(1, min(shape) // 2)
    structure = Siva(columns, rows, k, basis=basis, seed=5)
    weight = weight_of(*shape)
    wanted = siva.bases(weight, k=k, basis=basis, seed=5)
    assert all(map(torch.equal, structure.prepare(weight), wanted))
    U, s, V = structure.nearest(weight)
    assert torch.equal(U, wanted[0])
    assert torch.equal(V, wanted[1])
    oracle.assert_close(s, (U.T @ weight @ V).diagonal(), size=weight.norm().item())
    if basis != "random":
        values = torch.linalg.svdvals(weight)
        oracle.assert_close(s, values[:k] if basis == "top" else values[-k:], size=weight.norm().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nearest_rounds_to_the_type_of_the_weight_once(dtype: torch.dtype) -> None:
    weight = weight_of(12, 9, dtype=dtype)
    for found, exact in zip(Siva(9, 12, 4).nearest(weight), Siva(9, 12, 4).nearest(weight.double()), strict=True):
        assert found.dtype == dtype
        oracle.assert_close(found, exact, size=weight.double().norm().item() if exact.dim() == 1 else 0)


def test_only_s_is_trained_and_an_update_leaves_the_bases() -> None:
    structure = Siva(9, 12, 4)
    assert structure.parameter_shapes() == {"U": (12, 4), "s": (4,), "V": (9, 4)}
    assert structure.constants == ("U", "V")
    assert structure.count() == 4
    U, V = structure.prepare(weight_of(12, 9))
    s, before = weight_of(4), (U.clone(), V.clone())
    structure.initialise([U, s, V], "paper")
    assert not s.any()
    assert torch.equal(U, before[0])
    assert torch.equal(V, before[1])


@pytest.mark.parametrize("shape", [(5, 97), (63, 12), (12, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_merging_adds_the_matrix_to_a_weight_in_any_type(shape, dtype: torch.dtype) -> None:
    rows, columns = shape
    structure = Siva(columns, rows, 4)
    weight, parameters = weight_of(*shape, dtype=dtype), [weight_of(*s) for s in structure.parameter_shapes().values()]
    U, s, V = parameters = [p.to(dtype) for p in parameters]
    exact = weight.double() - 1.5 * (U.double() * s.double()) @ V.double().T
    oracle.assert_close(structure.merge(weight, *parameters, scale=-1.5), exact)
    wide = torch.empty(shape, dtype=torch.promote_types(dtype, torch.float32))
    assert structure.merge(weight, *parameters, scale=-1.5, out=wide) is wide
    oracle.assert_close(wide, exact)
    assert structure.merge(weight, *parameters, scale=-1.5, out=weight) is weight
    oracle.assert_close(weight, exact)


def test_layers_draw_orthonormal_bases_and_by_default_all_of_them() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 0.02)):
        layer = SivaLinear(9, 12, k=4, dtype=dtype)
        for columns in (layer.U, layer.V):
            gram = columns.double().T @ columns.double()
            assert torch.allclose(gram, torch.eye(4, dtype=torch.float64), atol=tolerance)
    assert SivaLinear(9, 12).structure.k == 9


def test_a_layer_trains_s_and_its_bias_and_stores_its_bases() -> None:
    layer = SivaLinear(9, 12, k=4)
    assert [name for name, _ in layer.named_parameters()] == ["s", "bias"]
    assert set(layer.state_dict()) == {"U", "s", "V", "bias"}
    layer(torch.randn(3, 9)).sum().backward()
    assert layer.s.grad.any()
    assert layer.U.grad is None


@basis_cases
def test_from_linear_takes_its_bases_from_the_weight(basis: str) -> None:
    linear = torch.nn.Linear(9, 12, dtype=torch.float64)
    layer = SivaLinear.from_linear(linear, k=4, basis=basis)
    U, V = siva.bases(linear.weight, k=4, basis=basis)
    oracle.assert_close(layer.to_linear().weight.detach(), U @ torch.diag((U.T @ linear.weight @ V).diagonal()) @ V.T)
    whole = SivaLinear.from_linear(linear)
    oracle.assert_close(whole.to_linear().weight.detach(), linear.weight.detach())


def test_structures_are_their_arguments() -> None:
    structure = Siva(9, 12, 4, basis="random", precision="float32", seed=7)
    assert repr(structure) == ("Siva(in_features=9, out_features=12, k=4, basis='random', precision='float32', seed=7)")
    same = Siva(9, 12, 4, "random", "float32", 7)
    for other in (copy.deepcopy(structure), pickle.loads(pickle.dumps(structure)), same):
        assert other == structure
        assert hash(other) == hash(structure)
    assert Siva(9, 12, 4, "random", "float32", 8) != structure


def test_empty_tensors_of_the_meta_device_have_bases_and_fingerprints_of_the_right_shapes() -> None:
    structure = Siva(9, 12, 4)
    for weight in (torch.empty(12, 9, device="meta"), torch.empty(12, 9, device="meta", dtype=torch.bfloat16)):
        U, V = structure.prepare(weight)
        assert (U.shape, V.shape, U.dtype, V.device) == ((12, 4), (9, 4), weight.dtype, weight.device)
        assert siva.fingerprint(U, V).shape == (64,)


W = torch.ones(3, 4)
REFUSALS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "weight is a list": (lambda: siva.decompose([1.0]), TypeError, "weight must be a torch.Tensor, got list"),
    "weight is integer": (
        lambda: siva.bases(W.int()),
        TypeError,
        "weight must be float32, float64, bfloat16 or float16, got int32",
    ),
    "weight is a vector": (
        lambda: siva.bases(W[0], k=1, basis="random"),
        ValueError,
        "weight must have shape (m, n) with no empty dimension, got (4,)",
    ),
    "weight is not finite": (
        lambda: siva.decompose(W / torch.tensor([0.0, 1, 0, 1])),
        ValueError,
        "weight must be finite, got 6 values that are not",
    ),
    "precision is too low": (
        lambda: siva.decompose(W, precision="bfloat16"),
        ValueError,
        "precision must be one of float64, float32, got 'bfloat16'",
    ),
    "matrix is not finite": (
        lambda: siva.effective_rank(W * math.nan),
        ValueError,
        "matrix must be finite, got 12 values that are not",
    ),
    "perc is zero": (lambda: siva.count(W[0], 0), ValueError, "perc must be above 0 and at most 1, got 0"),
    "perc is percent": (lambda: siva.bases(W, perc=95), ValueError, "perc must be above 0 and at most 1, got 95"),
    "perc is NaN": (lambda: siva.count(W[0], math.nan), ValueError, "perc must be above 0 and at most 1, got nan"),
    "perc is text": (lambda: siva.count(W[0], "most"), TypeError, "perc must be a real number, got str"),
    "rule is unknown": (
        lambda: siva.count(W[0], rule="cubes"),
        ValueError,
        "rule must be one of variance, sum, got 'cubes'",
    ),
    "the spectrum is a matrix": (
        lambda: siva.count(W),
        ValueError,
        "singular_values must have shape (r,) with no empty dimension, got (3, 4)",
    ),
    "basis is unknown": (
        lambda: siva.bases(W, basis="middle"),
        ValueError,
        "basis must be one of bottom, top, random, got 'middle'",
    ),
    "k is too large": (
        lambda: siva.bases(W, k=4),
        ValueError,
        "k must be at most 3 for a weight of 3 x 4, got 4",
    ),
    "k of random vectors is too large": (
        lambda: siva.bases(W, k=4, basis="random"),
        ValueError,
        "k must be at most 3 for a weight of 3 x 4, got 4",
    ),
    "k is zero": (lambda: siva.bases(W, k=0), ValueError, "k must be at least 1, got 0"),
    "seed is no int": (
        lambda: siva.bases(W, k=1, basis="random", seed=0.5),
        TypeError,
        "seed must be an int, got float",
    ),
    "V has other columns than U": (
        lambda: siva.fingerprint(W, W[:, :2]),
        ValueError,
        "V must have shape (n, k) with k as in U, (3, 4), got (3, 2)",
    ),
    "V is elsewhere": (
        lambda: siva.fingerprint(W, W.to("meta")),
        ValueError,
        "V must be on the device of U, cpu, got meta",
    ),
    "the structure's k is too large": (
        lambda: Siva(4, 3, 4),
        ValueError,
        "k must be at most 3 for a weight of 3 x 4, got 4",
    ),
    "the structure's k is no int": (lambda: Siva(4, 3, 2.0), TypeError, "k must be an int, got float"),
    "the structure's precision is a type": (
        lambda: Siva(4, 3, 2, precision=torch.float64),
        ValueError,
        "precision must be one of float64, float32, got torch.float64",
    ),
    "the weight is another's": (
        lambda: Siva(4, 3, 2).prepare(W.T),
        ValueError,
        "weight must have shape (3, 4), got (4, 3)",
    ),
    "the layer's features are none": (
        lambda: SivaLinear(0, 4),
        ValueError,
        "in_features must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_by_name_value_and_wish(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error) as refusal:
        call()
    assert str(refusal.value) == message
