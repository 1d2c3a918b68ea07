"""Stochastic rounding: the random numbers, both types at their ends, and merging every kind of matrix without bias."""

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from surm_kernels.ops.grid import grid_merge
from surm_kernels.ops.stochastic import rounding_key, stochastic_sum
from surm_kernels.reference.ops import grid as reference_grid
from surm_kernels.reference.ops import stochastic as reference
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures import Circulant, Kronecker, LowRank, Siva, Structure, Sum, Toeplitz, VandermondeLike
from tests import oracle, updates
from tests.grids import EVERY_KIND, grid_of
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

types = pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)
TYPES = [pair for dtype in oracle.SIXTEEN_BIT for pair in ((dtype, dtype), (torch.float32, dtype))]
KEY = StochasticRounding.at(3, 5).key
#: The smallest numbers above zero.
SUBNORMAL = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}


def rounded(values: Tensor, dtype: torch.dtype, key: Tensor = KEY) -> Tensor:
    out = torch.empty(values.shape, dtype=dtype)
    stochastic_sum(torch.full(values.shape, -0.0), values, key, out)  # which changes no other number's sign
    return out


def any_bits(*shape: int) -> Tensor:
    """Numbers of every magnitude, NaN and infinity among them."""
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32).view(torch.float32)


def bits(t: Tensor) -> Tensor:
    return t.view(torch.int16)


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest number of the type that is not above a finite value, and the smallest not below, in float64."""
    nearest, infinity = values.to(dtype), torch.tensor(torch.inf, dtype=dtype)
    exact, found = values.double(), nearest.double()
    below, above = torch.nextafter(nearest, -infinity).double(), torch.nextafter(nearest, infinity).double()
    return torch.where(found <= exact, found, below), torch.where(found >= exact, found, above)


# The random numbers


def test_the_random_numbers_are_those_of_every_release_and_device() -> None:
    key = StochasticRounding.at(1, 2).key
    words = reference.random_words(key, 2, 3)
    assert int(key) == -534904783426661026
    assert words.tolist() == [[0x7FBFF175, 0x174A545D, 0x590FE2A5], [0x337F7FBE, 0xF9EF192F, 0x0A33D26F]]
    # Half a spacing above 1, of 16 bits in bfloat16, carries with a random number of as many or does not.
    values = torch.full(words.shape, 1 + 2**-8)
    assert torch.equal(rounded(values, torch.bfloat16, key) > 1, words >= 2**31)


def test_the_random_numbers_are_uniform_and_those_of_different_places_and_steps_independent() -> None:
    size = 512
    keys = [StochasticRounding.at(0, step).key for step in range(size)]
    words = torch.stack([reference.random_words(key, 8, size) for key in keys])
    for shift in (0, 8, 16):  # of the bits that are used
        z = ((words >> shift & 0xFFFF).double() - (2**16 - 1) / 2) * 12**0.5 / 2**16
        assert abs(z.mean()) * z.numel() ** 0.5 < 4
        assert (z.mean(0).abs() * size**0.5).max() < 5
        assert abs(z.square().mean() - 1) * (z.numel() / 0.8) ** 0.5 < 4
        for dimension in range(3):
            steps, other = z.movedim(dimension, 0).flatten(1)[:-1], z.movedim(dimension, 0).flatten(1)[1:]
            assert abs((steps * other).mean()) * other.numel() ** 0.5 < 4
        columns = z[:, 0].T @ z[:, 0] / size
        assert (columns.fill_diagonal_(0).abs() * size**0.5).max() < 5.5


def test_a_key_follows_from_seed_and_step() -> None:
    keys = {int(StochasticRounding.at(seed, step).key) for seed in (-1, 0, 1, 2**64 + 2) for step in (-1, 0, 1, 2**63)}
    assert len(keys) == 16
    assert all(-(2**63) <= key < 2**63 for key in keys)


def key_of(*tensors: Tensor) -> int:
    return int(StochasticRounding.of(*tensors).key)


@pytest.mark.parametrize("others", [0, 1, 17])
def test_the_kernel_takes_the_key_of_the_reference(others: int) -> None:
    tensors = [torch.randn(37, 11).to(updates.DTYPES[index % len(updates.DTYPES)]) for index in range(1 + others)]
    tensors[-1] = tensors[-1].T
    for seed in (-(2**63), 0, 7):
        key = rounding_key(tensors[0], tensors[1:], seed)
        assert key.shape == () and key.dtype == torch.int64
        assert torch.equal(key, reference.rounding_key(tensors[0], tensors[1:], seed))


def test_a_key_is_that_of_the_values_and_changes_with_the_last_bit_of_one() -> None:
    torch.manual_seed(7)
    a, b = torch.randn(3, 50), torch.randn(50).bfloat16()
    found = key_of(a, b)
    assert found == key_of(a.T.contiguous().T.detach().clone().requires_grad_(), b.clone())
    others = [key_of(b, a), key_of(a), key_of(a, b, b)]
    for place in (0, 77, 149):
        changed = a.clone()
        changed.view(torch.int32).flatten()[place] ^= 1
        others.append(key_of(changed, b))
    assert len({found, *others}) == 7
    torch.manual_seed(8)
    assert key_of(a, b) != found
    torch.manual_seed(7)
    assert key_of(a, b) == found


# Rounding


@cases("types, size", in_turns(TYPES, ((1, 1), (3, 17), (37, 1001), (5, 16), (0, 4), (4, 0))))
def test_the_kernel_rounds_as_the_reference_to_the_bit(types, size: tuple[int, int]) -> None:
    small = torch.randn(size) * 2.0**-15
    for addend in (any_bits(*size), small, small.to(types[1])):
        weight = torch.randn(size).mul(1e-4).to(types[0])
        out, wanted = (torch.empty(size, dtype=types[1]) for _ in range(2))
        stochastic_sum(weight, addend, KEY, out)
        reference.stochastic_sum(weight, addend, KEY, wanted)
        assert torch.equal(bits(out), bits(wanted))


@cases("types, kind", in_turns(TYPES, EVERY_KIND))
def test_merging_a_grid_rounds_as_the_reference_to_the_bit_and_as_the_sum(types, kind: int) -> None:
    for shape in ((1, 1), (97, 63), (5, 4, 2, 3), (64, 33, 3, 2)):
        w = grid_of(kind, *shape)
        for parameter in updates.DTYPES:
            (values,) = w.values(1, parameter)
            (dense,) = w.matrices(0.7 * values.float()[None])
            weight = torch.randn(dense.shape).to(types[0])
            out, wanted, summed = (torch.empty(dense.shape, dtype=types[1]) for _ in range(3))
            grid_merge(weight, values, kind, w.columns, 0.7, KEY, out)
            reference_grid.grid_merge(weight, values, kind, w.columns, 0.7, KEY, wanted)
            stochastic_sum(weight, dense.float(), KEY, summed)
            assert torch.equal(out, wanted)
            assert torch.equal(out, summed)


@types
def test_a_number_becomes_a_neighbour_and_one_of_the_type_stays_as_it_is(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = any_bits(64, 1000)
    values = torch.where(values.abs() <= largest, values, 1.0)
    small = torch.randn(64, 1000) * 100 * SUBNORMAL[dtype]
    for exact in (values, small):
        below, above = neighbours(exact, dtype)
        found = rounded(exact, dtype)
        assert ((found.double() == below) | (found.double() == above)).all()
        assert torch.equal(found.signbit(), exact.signbit())
        representable = exact.to(dtype)
        assert torch.equal(bits(rounded(representable.float(), dtype)), bits(representable))


@types
def test_what_has_no_neighbours_is_rounded_as_to_nearest(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    spacing = largest - float(torch.nextafter(torch.tensor(largest, dtype=dtype), torch.zeros((), dtype=dtype)))
    beyond = torch.tensor([largest, largest + 0.499 * spacing, largest + 0.5 * spacing, largest + 0.75 * spacing,
                           torch.finfo(torch.float32).max, torch.inf, 0.0]).repeat(50, 3)  # fmt: skip
    for values in (beyond, -beyond):
        assert torch.equal(bits(rounded(values, dtype)), bits(values.to(dtype)))
    nan = any_bits(8, 100).view(torch.int32).bitwise_or(0x7F800001).view(torch.float32)
    assert nan.isnan().all() and rounded(nan, dtype).isnan().all()


@types
@pytest.mark.parametrize("size", [1.0, -300.0, "subnormal"], ids=str)
def test_the_share_of_those_rounded_up_is_the_place_between_the_neighbours(dtype: torch.dtype, size) -> None:
    unit = 10 * SUBNORMAL[dtype] if size == "subnormal" else size
    start = torch.tensor(unit, dtype=dtype)
    below, above = start.double(), torch.nextafter(start, torch.tensor(torch.inf, dtype=dtype)).double()
    for place in (2**-11, 0.125, 0.5, 0.8125, 1 - 2**-11):
        if dtype == torch.bfloat16 and size == "subnormal":
            place = round(place * 2**16) / 2**16  # spacings of float32 there
        values = (below + place * (above - below)).float()
        exact = ((values.double() - below) / (above - below)).item()
        up = (rounded(values.expand(300, 1000).contiguous(), dtype).double() == above).double().mean().item()
        assert abs(up - exact) < 5 * math.sqrt(exact * (1 - exact) / 300_000)


def test_results_are_the_same_for_any_number_of_threads_and_in_place(threads) -> None:
    w = grid_of(0, 257, 257, 2, 3)
    (values,) = w.values()
    weight = torch.randn(2 * w.rows, 3 * w.columns).bfloat16()
    addend = torch.randn(weight.shape)
    results = []
    for count in (1, 2, 3):
        threads(count)
        out, summed = torch.empty_like(weight), weight.clone()
        grid_merge(weight, values, 0, w.columns, 0.7, KEY, out)
        stochastic_sum(summed, addend, KEY, summed)
        results.append((out, summed))
    for out, summed in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(summed, results[0][1])


def test_rows_may_have_any_strides() -> None:
    weight, addend = torch.randn(7, 40).half(), torch.randn(7, 40)
    wanted = torch.empty_like(weight)
    stochastic_sum(weight, addend, KEY, wanted)
    wide = torch.zeros(14, 45, dtype=torch.float16)
    out = wide[1::2, 2:-3]
    stochastic_sum(weight.mT.contiguous().mT, addend.mT.contiguous().mT, KEY, out)
    assert torch.equal(out, wanted)
    out.zero_()
    assert (wide == 0).all()


def test_types_and_shapes_that_do_not_go_together_are_refused() -> None:
    weight, addend = torch.randn(4, 6), torch.randn(4, 6)
    for arguments in (
        (weight, addend, KEY, torch.empty(4, 6)),
        (weight, addend.half(), KEY, weight.bfloat16()),
        (weight[1:], addend, KEY, weight.bfloat16()),
        (weight, addend[1:], KEY, weight.bfloat16()),
    ):
        with pytest.raises(RuntimeError):
            stochastic_sum(*arguments)
    with pytest.raises(RuntimeError, match="out must have 16 bits"):
        grid_merge(torch.randn(6, 6), torch.randn(1, 1, 6), 0, 6, 1.0, KEY, torch.empty(6, 6))


def test_a_weight_of_the_other_type_of_16_bits_is_taken_as_it_is() -> None:
    weight, addend = torch.randn(4, 6).half(), torch.randn(4, 6)
    found, expected = torch.empty(2, 4, 6, dtype=torch.bfloat16)
    stochastic_sum(weight, addend, KEY, found)
    stochastic_sum(weight.float(), addend, KEY, expected)
    assert torch.equal(found, expected)


def test_operators_pass_opcheck() -> None:
    weight = torch.randn(6, 6)
    opcheck(torch.ops.surm_kernels.stochastic_sum.default, (weight, torch.randn(6, 6), KEY, torch.zeros(6, 6).half()))
    grid = (weight, torch.randn(1, 1, 6), 0, 6, 0.7, KEY, torch.zeros(6, 6).half())
    opcheck(torch.ops.surm_kernels.grid_merge.default, grid)


# Merging

MERGED: dict[str, Structure] = {
    "circulant": Circulant(8, 8),
    "toeplitz": Toeplitz(8, 6),
    "kronecker": Kronecker(8, 6),
    "low rank": LowRank(8, 6, 2),
    "siva": Siva(8, 6, 3),
    "vandermonde-like": VandermondeLike(6, 5, 1),
    "sum": Sum([Circulant(8, 8), LowRank(8, 8, 1)], [0.5, 2.0]),
}
STEPS = 4096


@cases("name, dtype", in_turns(list(MERGED), oracle.SIXTEEN_BIT))
def test_the_mean_of_many_merges_is_the_sum_and_each_is_within_a_spacing(name: str, dtype: torch.dtype) -> None:
    structure, scale = MERGED[name], 2.0**-6
    parameters = updates.parameters_of(structure, dtype)
    weight = torch.randn(structure.out_features, structure.in_features).to(dtype)
    exact = weight.double() + scale * updates.matrix(structure, parameters, dtype)
    merges = torch.empty(STEPS, *weight.shape, dtype=dtype)
    for step, out in enumerate(merges):
        structure.merge(weight, *parameters, scale=scale, out=out, rounding=StochasticRounding.at(0, step))
    below, above = neighbours(exact.float(), dtype)
    spacing = above - below
    place = torch.where(spacing > 0, (exact - below) / spacing, 0)
    # Of fewer than 25 of them going the rarer way the number is not normal, but Poisson.
    variance = (place * (1 - place)).clamp(min=25 / STEPS)
    of_product = scale * product_error(structure, parameters) if dtype == torch.bfloat16 else 0
    assert ((merges.double().mean(0) - exact).abs() <= 5 * spacing * (variance / STEPS).sqrt() + of_product).all()
    errors = (merges.double() - exact).abs()
    assert (errors <= spacing * (1 + 2**-9) + of_product).all()  # the sum itself is rounded to float32


def product_error(structure: Structure, parameters: tuple[Tensor, ...]) -> Tensor | float:
    """What Siva.merge says of its product in bfloat16."""
    if not isinstance(structure, Siva):
        return 0.0
    U, s, V = (parameter.double() for parameter in parameters)
    return 2**-8 * (((U * s) @ V.T).abs() + 1.01 * (U.abs() * s.abs()) @ V.abs().T)


def test_the_product_of_siva_in_bfloat16_is_off_by_no_more_than_is_said() -> None:
    structure = Siva(300, 200, 80)
    for size in (1.0, 2.0**-60):
        U, s, V = updates.parameters_of(structure, torch.bfloat16)
        parameters = U, s * size, V
        out = torch.empty(200, 300, dtype=torch.bfloat16)
        # Nothing is left to round in a sum with zero.
        structure.merge(torch.zeros_like(out), *parameters, scale=0.5, out=out, rounding=StochasticRounding.at(0, 0))
        exact = 0.5 * updates.matrix(structure, parameters, torch.bfloat16)
        assert ((out.double() - exact).abs() <= 0.5 * product_error(structure, parameters)).all()
        assert oracle.error(out, exact) < 2 * oracle.error(exact.bfloat16(), exact)


@cases("name, types", in_turns(list(updates.SQUARES), TYPES))
def test_every_structure_merges_with_less_than_twice_the_error_of_rounding_to_nearest(name: str, types) -> None:
    structure, (weight_type, dtype) = updates.SQUARES[name], types
    parameters = updates.parameters_of(structure, dtype)
    weight, out = torch.randn(96, 96).to(weight_type), torch.empty(96, 96, dtype=dtype)
    structure.merge(weight, *parameters, scale=0.7, out=out, rounding=StochasticRounding.at(1, 1))
    exact = weight.double() + 0.7 * updates.matrix(structure, parameters, dtype)
    assert oracle.error(out, exact) <= 2.0 * oracle.error(exact.to(dtype), exact)
    other = structure.merge(weight, *parameters, scale=0.7, out=out.clone(), rounding=StochasticRounding.at(1, 2))
    assert not torch.equal(other, out)
    again = structure.merge(weight, *parameters, scale=0.7, out=out.clone(), rounding=StochasticRounding.at(1, 1))
    assert torch.equal(again, out)
