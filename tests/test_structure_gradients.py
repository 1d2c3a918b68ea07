"""What adapted layers ask of structures: gradients in one pass, the sum with a frozen weight, constants, equality."""

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from surm_kernels.structures import (
    BlockCirculant,
    Circulant,
    Hydra,
    Kronecker,
    Siva,
    SkewCirculant,
    Structure,
)
from tests import oracle, updates
from tests.test_structures import STRUCTURES as SMALL

SCALE = 0.7
TOKENS = (0, 1, 17, 300)
# Every shape of every structure; the smallest sizes only where a norm does not hang on one rounding. From one structure
# and shape to the next, types and numbers of tokens rotate: all pairs of them are met, not all combinations.
WIDE = updates.DTYPES[:2]
ROTATED = [
    (f"{family}, {shape}", family_turn, shape_turn)
    for family_turn, family in enumerate(updates.FAMILIES | updates.GRIDS)
    for shape_turn, shape in enumerate([*updates.RECTANGLES, "of primes"])
    if f"{family}, {shape}" in updates.STRUCTURES
]


def case(name: str, structure: Structure, dtype: torch.dtype, *tokens: int):
    words = (name, str(dtype).removeprefix("torch."), *(f"{count} tokens" for count in tokens))
    return pytest.param(structure, dtype, *tokens, id=", ".join(words))


WITH_TYPE_AND_TOKENS = [
    case(name, updates.STRUCTURES[name], types[(family + shape) % 2], TOKENS[(family // 2 + shape + 2 * half) % 4])
    for name, family, shape in ROTATED
    for half, types in enumerate((WIDE, oracle.SIXTEEN_BIT))
] + [case(name, small, WIDE[k % 2], TOKENS[k // 2 % 4]) for k, (name, small) in enumerate(SMALL.items())]
WITH_TYPE = [
    case(name, updates.STRUCTURES[name], updates.DTYPES[(family + shape) % 4]) for name, family, shape in ROTATED
] + [case(name, small, WIDE[k % 2]) for k, (name, small) in enumerate(SMALL.items())]
structure_and_dtype_cases = pytest.mark.parametrize(("structure", "dtype"), WITH_TYPE)
square_cases = pytest.mark.parametrize("structure", updates.SQUARES.values(), ids=updates.SQUARES.keys())
SIXTEEN_BIT = pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)


def tokens_of(structure: Structure, dtype: torch.dtype, *leading: int) -> tuple[Tensor, Tensor]:
    """A gradient of the output and an input."""
    sizes = structure.out_features, structure.in_features
    g, x = (torch.randn(*leading, size, dtype=torch.float64).to(dtype) for size in sizes)
    return g, x


def exact_gradients(
    structure: Structure, g: Tensor, x: Tensor, parameters: tuple[Tensor, ...], scale: float = SCALE
) -> list[Tensor | None]:
    """Those of scale <g, x W^T> by autograd through the float64 matrix, None for constants."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    W = updates.matrix(structure, tuple(leaves[1:]), parameters[0].dtype)
    gradients = torch.autograd.grad(scale * (g.double() * (leaves[0] @ W.T)).sum(), leaves)
    names = (None, *structure.parameter_shapes())
    return [None if name in structure.constants else gradient for name, gradient in zip(names, gradients, strict=True)]


def assert_gradients(structure: Structure, got: Sequence[Tensor | None], exact: Sequence[Tensor | None]) -> None:
    names = ("x", *structure.parameter_shapes())
    for name, gradient, wanted in zip(names, got, exact, strict=True):
        if wanted is None:
            assert gradient is None, f"{name} needs no gradient"
        else:
            updates.assert_close(gradient, wanted, updates.gradient_rounding_factor(structure), f"gradient of {name}")


def joined(draws: list[Sequence[Tensor | None]]) -> list[Tensor | None]:
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*draws, strict=True)]


@pytest.mark.parametrize(("structure", "dtype", "tokens"), WITH_TYPE_AND_TOKENS)
def test_gradients_are_those_through_the_float64_matrix(structure: Structure, dtype: torch.dtype, tokens: int) -> None:
    results, exact = [], []
    draws = updates.draws(structure) if dtype in oracle.SIXTEEN_BIT else 1
    for _ in range(4 * draws if tokens == 1 else draws):  # a product of two numbers spreads more than a sum of them
        parameters = updates.parameters_of(structure, dtype)
        g, x = tokens_of(structure, dtype, tokens)
        results.append(structure.gradients(g, x, *parameters, scale=SCALE))
        exact.append(exact_gradients(structure, g, x, parameters))
    got, exact = joined(results), joined(exact)
    assert_gradients(structure, got, exact)
    assert all(gradient is None or gradient.dtype == dtype for gradient in got)


@structure_and_dtype_cases
def test_gradients_of_the_parameters_alone_are_the_same_to_rounding(structure: Structure, dtype: torch.dtype) -> None:
    parameters = updates.parameters_of(structure, dtype)
    g, x = tokens_of(structure, dtype, 300)
    both = structure.gradients(g, x, *parameters, scale=SCALE)
    input_gradient, *alone = structure.gradients(g, x, *parameters, scale=SCALE, input_gradient=False)
    assert input_gradient is None
    for a, b in zip(alone, both[1:], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            twice = 2 * oracle.error(b.double().to(dtype), b.double()) + 4 * torch.finfo(dtype).eps
            assert oracle.error(a, b.double()) <= max(twice, oracle.FLOAT32_TOLERANCE if dtype != torch.float64 else 0)


@square_cases
def test_gradients_of_no_tokens_are_zeros(structure: Structure) -> None:
    g, x = tokens_of(structure, torch.float32, 0)
    parameters = updates.parameters_of(structure, torch.float32)
    for gradient in structure.gradients(g, x, *parameters)[1:]:
        assert gradient is None or (gradient == 0).all()


@square_cases
def test_gradients_take_any_leading_shape_and_strides_and_no_scale(structure: Structure) -> None:
    parameters = updates.parameters_of(structure)
    for leading in ((), (2, 3), (2, 0, 3)):
        g, x = tokens_of(structure, torch.float64, *leading)
        assert_gradients(
            structure, structure.gradients(g, x, *parameters), exact_gradients(structure, g, x, parameters, 1.0)
        )
    g, x = tokens_of(structure, torch.float64, 5, 2)
    g, x = g.transpose(0, 1), x.flip(-1).transpose(0, 1)
    apart = torch.empty(*x.shape, 2, dtype=x.dtype)[..., 0].copy_(x)
    exact = exact_gradients(structure, g, x, parameters)
    assert_gradients(structure, structure.gradients(g, apart, *parameters, scale=SCALE), exact)
    expanded = g[:1, :1].expand_as(g)
    exact = exact_gradients(structure, expanded, x, parameters)
    assert_gradients(structure, structure.gradients(expanded, x, *parameters, scale=SCALE), exact)


@SIXTEEN_BIT
@square_cases
def test_gradients_have_the_types_of_what_they_belong_to(structure: Structure, dtype: torch.dtype) -> None:
    results, exact, exact_if_rounded = [], [], []
    for _ in range(updates.draws(structure)):
        g, x = tokens_of(structure, dtype, 17)
        parameters = updates.parameters_of(structure, torch.float32)
        results.append(structure.gradients(g, x, *parameters, scale=SCALE))
        exact.append(exact_gradients(structure, g, x, parameters))
        exact_if_rounded.append(exact_gradients(structure, g, x, tuple(p.to(dtype) for p in parameters)))
    got, exact, exact_if_rounded = joined(results), joined(exact), joined(exact_if_rounded)
    assert got[0].dtype == dtype
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in got[1:])
    for gradient, *answers in zip(got, exact, exact_if_rounded, strict=True):
        if gradient is not None:  # wide parameters may be rounded on their way in, or not
            factor = max(1.5, updates.gradient_rounding_factor(structure))
            assert any(oracle.error(gradient, y) <= factor * oracle.error(y.to(dtype), y) for y in answers)


@square_cases
def test_gradients_and_merged_weights_record_nothing_even_of_what_requires_gradients(structure: Structure) -> None:
    g, x = (t.requires_grad_() for t in tokens_of(structure, torch.float32, 3))
    parameters = [parameter.requires_grad_() for parameter in updates.parameters_of(structure, torch.float32)]
    weight = torch.randn(structure.out_features, structure.in_features, requires_grad=True)
    results = [*structure.gradients(g, x, *parameters), structure.merge(weight, *parameters)]
    assert not any(result is not None and result.requires_grad for result in results)
    assert all(t.grad is None for t in (g, x, weight, *parameters))


@square_cases
def test_gradients_leave_their_arguments_alone_and_are_no_views_of_them(structure: Structure) -> None:
    g, x = tokens_of(structure, torch.float32, 5)
    arguments = [g, x, *updates.parameters_of(structure, torch.float32)]
    before = [t.clone() for t in arguments]
    for gradient in structure.gradients(*arguments):
        if gradient is not None:
            gradient.fill_(torch.nan)
    assert all(map(torch.equal, arguments, before))


@structure_and_dtype_cases
def test_merge_rounds_the_sum_of_weight_and_update_once(structure: Structure, dtype: torch.dtype) -> None:
    parameters = updates.parameters_of(structure, dtype)
    weight = torch.randn(structure.out_features, structure.in_features, dtype=torch.float64).to(dtype)
    exact = weight.double() + SCALE * updates.matrix(structure, parameters, dtype)
    before = weight.clone()
    merged = structure.merge(weight, *parameters, scale=SCALE)
    assert merged.dtype == dtype
    oracle.assert_close(merged, exact)
    assert torch.equal(weight, before)
    assert merged.data_ptr() != weight.data_ptr()
    out = torch.full_like(weight, torch.nan)
    assert structure.merge(weight, *parameters, scale=SCALE, out=out) is out
    assert torch.equal(out, merged)
    assert structure.merge(weight, *parameters, scale=SCALE, out=weight) is weight
    oracle.assert_close(weight, exact)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@square_cases
def test_merge_rounds_to_the_type_of_out_alone(structure: Structure, out_dtype: torch.dtype) -> None:
    dtype = torch.float16 if out_dtype == torch.bfloat16 else torch.bfloat16
    weight = torch.randn(structure.out_features, structure.in_features).to(dtype)
    for stored in (dtype, torch.float32):
        parameters = updates.parameters_of(structure, stored)
        exact = weight.double() + SCALE * updates.matrix(structure, parameters, stored)
        out = torch.empty(weight.shape, dtype=out_dtype)
        oracle.assert_close(structure.merge(weight, *parameters, scale=SCALE, out=out), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@square_cases
def test_merging_an_update_that_starts_from_zero_gives_the_weight_itself(
    structure: Structure, dtype: torch.dtype
) -> None:
    if "paper" not in structure.initialisations:
        pytest.skip("has no start from zero")
    weight = torch.randn(structure.out_features, structure.in_features).to(dtype)
    parameters = updates.parameters_of(structure, dtype)
    structure.initialise(parameters, "paper")
    has_fixed_values = isinstance(structure, Hydra) and structure.structure == "hankel"
    assert torch.equal(structure.merge(weight, *parameters), weight) != has_fixed_values


@square_cases
def test_merge_takes_weights_and_outputs_of_any_strides(structure: Structure) -> None:
    parameters = updates.parameters_of(structure)
    weight = torch.randn(structure.in_features, structure.out_features, dtype=torch.float64).T
    exact = weight + SCALE * structure.dense(*parameters)
    oracle.assert_close(structure.merge(weight, *parameters, scale=SCALE), exact)
    out = torch.empty(*weight.shape, 2, dtype=weight.dtype)[..., 1]
    oracle.assert_close(structure.merge(weight, *parameters, scale=SCALE, out=out), exact)


@pytest.mark.parametrize("structure", [*updates.SQUARES.values(), *SMALL.values()], ids=repr)
def test_structures_are_equal_where_class_and_arguments_are(structure: Structure) -> None:
    for other in (copy.deepcopy(structure), pickle.loads(pickle.dumps(structure))):
        assert other == structure
        assert hash(other) == hash(structure)
        assert {structure: "found"}[other] == "found"
    assert structure != repr(structure)
    others = [other for other in updates.STRUCTURES.values() if repr(other) != repr(structure)]
    assert structure not in others


def test_structures_of_another_class_size_or_option_differ() -> None:
    assert Circulant(8, 12) != Circulant(12, 8)
    assert Circulant(12, 12) != SkewCirculant(12, 12)
    assert Circulant(12, 8, 4) != Circulant(12, 8, 2)
    assert Circulant(12, 8, 4) != BlockCirculant(12, 8, 4)
    assert Kronecker(12, 8) != Kronecker(12, 8, (8, 12))
    assert Hydra(8, 8, seed=1) != Hydra(8, 8, seed=2)
    assert Siva(8, 8, 3) != Siva(8, 8, 4)
    assert Siva(8, 8, 3) != Siva(8, 8, 3, basis="top")
    assert Siva(8, 8, 3, basis="random", seed=1) != Siva(8, 8, 3, basis="random", seed=2)
    assert Siva(8, 8, 3) != Siva(8, 8, 3, precision="float32")
    assert Siva(8, 8, 3) == Siva(8, 8, k=3, basis="bottom")


@square_cases
def test_constants_are_parameters_by_name_are_not_counted_and_come_from_a_weight(structure: Structure) -> None:
    shapes = structure.parameter_shapes()
    assert set(structure.constants) < set(shapes)
    trained = [torch.Size(shape).numel() for name, shape in shapes.items() if name not in structure.constants]
    assert structure.count() == sum(trained)
    weight = torch.randn(structure.out_features, structure.in_features)
    prepared = structure.prepare(weight)
    assert [tuple(t.shape) for t in prepared] == [shapes[name] for name in structure.constants]
    assert all(t.dtype == weight.dtype for t in prepared)


def test_siva_alone_has_constants() -> None:
    assert [name for name, structure in updates.SQUARES.items() if structure.constants] == ["siva"]
    assert updates.SQUARES["siva"].constants == ("U", "V")


@pytest.mark.parametrize("name", updates.FAMILIES | updates.GRIDS)
def test_nominal_work_is_positive_and_grows_with_the_size(name: str) -> None:
    make = (updates.FAMILIES | updates.GRIDS)[name]
    small, large = make(96, 96), make(384, 384)
    assert 0 < small.token_work() < large.token_work()
    assert 0 < small.merge_work() < large.merge_work()
