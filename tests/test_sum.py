"""A sum of structures is the sum of their matrices, in every method that an adapted layer asks for."""

import pickle

import pytest
import torch

from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, CirculantProduct, Kronecker, LowRank, Siva, Sum, Toeplitz, Vandermonde

M, N = 12, 8
TERMS = (Toeplitz(N, M), LowRank(N, M, 2), CirculantProduct(N, M))
SCALES = (0.5, -2.0, 1.0)


def parameters_of(structure: Sum, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in structure.parameter_shapes().values()
    ]


def matrix(structure: Sum, parameters: list[torch.Tensor]) -> torch.Tensor:
    """Its dense matrix in float64, term by term."""
    total, start = torch.zeros(structure.out_features, structure.in_features, dtype=torch.float64), 0
    for term, scale in zip(structure.terms, structure.scales, strict=True):
        count = len(term.parameter_shapes())
        total = total + scale * term.dense(*(p.double() for p in parameters[start : start + count]))
        start += count
    return total


def test_product_and_matrix_are_the_sums_of_the_terms() -> None:
    structure = Sum(TERMS, SCALES)
    parameters, x, base = parameters_of(structure), torch.randn(5, N).double(), torch.randn(5, M).double()
    wanted = base + 3 * x @ matrix(structure, parameters).T
    torch.testing.assert_close(structure.linear(x, *parameters, base=base, scale=3.0), wanted)
    torch.testing.assert_close(structure.dense(*parameters), matrix(structure, parameters))


def test_gradients_are_those_of_autograd() -> None:
    structure = Sum(TERMS, SCALES)
    parameters = [p.requires_grad_() for p in parameters_of(structure)]
    x, g = torch.randn(5, N).double().requires_grad_(), torch.randn(5, M).double()
    wanted = torch.autograd.grad(0.7 * x @ matrix(structure, parameters).T, [x, *parameters], g)
    found = structure.gradients(g, x.detach(), *(p.detach() for p in parameters), scale=0.7)
    torch.testing.assert_close(found, wanted)
    without = structure.gradients(g, x.detach(), *(p.detach() for p in parameters), scale=0.7, input_gradient=False)
    assert without[0] is None
    torch.testing.assert_close(without[1:], wanted[1:])


def test_merging_in_16_bits_rounds_once() -> None:
    structure = Sum((Toeplitz(N, M),) * 8)
    parameters = parameters_of(structure, torch.float32)
    weight = (100 * torch.randn(M, N)).bfloat16()
    wanted = (weight.double() + matrix(structure, parameters)).bfloat16()
    assert torch.equal(structure.merge(weight, *parameters), wanted)
    out = torch.full_like(weight, torch.nan)
    assert structure.merge(weight, *parameters, out=out) is out and torch.equal(out, wanted)


def test_a_kept_product_is_the_product() -> None:
    structure = Sum((Circulant(N, N), Toeplitz(N, N)), (2.0, -1.0))
    parameters, x = parameters_of(structure, torch.float32), torch.randn(1, N)
    kept = structure.kept(*parameters)
    assert kept is not None
    torch.testing.assert_close(kept(x, None, 0.5), structure.linear(x, *parameters, scale=0.5))
    assert (
        Sum((Circulant(N, N), LowRank(N, N, 2))).kept(*parameters_of(Sum((Circulant(N, N), LowRank(N, N, 2))))) is None
    )


@pytest.mark.parametrize("strategy", ["direct", "merged"])
def test_an_adapted_layer_takes_a_sum(strategy: str) -> None:
    structure = Sum((CirculantProduct(N, M), Siva(N, M, 3), Kronecker(N, M, (3, 2))), SCALES)
    assert structure.constants == ("1_U", "1_V") and structure.initialisations == ("paper",)
    layer = AdaptedLinear(torch.nn.Linear(N, M), structure, strategy=strategy).double()
    assert torch.equal(layer.weight, layer.base.weight)
    with torch.no_grad():
        for parameter in layer.structured_parameters():
            if parameter.requires_grad:
                parameter.normal_()
    x = torch.randn(5, N).double().requires_grad_()
    weight = layer.base.weight + matrix(structure, list(layer.structured_parameters()))
    trained = [p for p in layer.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(torch.nn.functional.linear(x, weight, layer.base.bias).square().sum(), [x, *trained])
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), [x, *trained]), wanted)


def test_terms_without_a_common_start_say_so() -> None:
    structure = Sum((CirculantProduct(4, 4), Vandermonde(4, 4)))
    with pytest.raises(ValueError, match="method must be one of none, got None"):
        structure.initialise([torch.empty(shape) for shape in structure.parameter_shapes().values()])


def test_sums_are_equal_by_their_terms_and_scales() -> None:
    structure = Sum(TERMS, SCALES)
    assert structure == Sum(TERMS, SCALES) == pickle.loads(pickle.dumps(structure))
    assert hash(structure) == hash(Sum(TERMS, SCALES))
    assert structure != Sum(TERMS) and structure != Sum(TERMS[::-1], SCALES)


@pytest.mark.parametrize(
    ("terms", "scales", "message"),
    [
        ((), None, "terms must be one structure or more, got none"),
        ((Circulant(4, 4), Circulant(5, 5)), None, "terms must have one size, got "),
        ((Circulant(4, 4),), (1.0, 2.0), "scales must be as many as terms, 1, got 2"),
        ((Circulant(4, 4),), (float("nan"),), "scales must be finite, got nan"),
    ],
)
def test_what_is_no_sum_is_refused(terms, scales, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sum(terms, scales)
