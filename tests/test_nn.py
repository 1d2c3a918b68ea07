"""The layers: same map as the nn.Linear they become or come from, and good manners as modules."""

import copy
import io
import pickle

import pytest
import torch

from surm_kernels.nn import (
    BlockCirculantLinear,
    CauchyLikeLinear,
    CirculantLinear,
    HankelLikeLinear,
    HankelLinear,
    HydraLinear,
    KroneckerLinear,
    LowRankLinear,
    SivaLinear,
    SkewCirculantLinear,
    StructuredLinear,
    SymmetricToeplitzLinear,
    ToeplitzLikeLinear,
    ToeplitzLinear,
    VandermondeLikeLinear,
    VandermondeLinear,
)
from surm_kernels.structures import CirculantProduct
from tests import oracle

# name: (class, sizes, options); these have a projection
PROJECTED = {
    "circulant": (CirculantLinear, (12, 12), {}),
    "circulant, wide": (CirculantLinear, (12, 8), {}),
    "circulant, tall": (CirculantLinear, (8, 12), {}),
    "circulant, blocks": (CirculantLinear, (12, 8), {"block_size": 4}),
    "skew-circulant": (SkewCirculantLinear, (12, 12), {}),
    "skew-circulant, wide": (SkewCirculantLinear, (12, 8), {}),
    "skew-circulant, blocks": (SkewCirculantLinear, (8, 12), {"block_size": 2}),
    "block circulant": (BlockCirculantLinear, (12, 8), {"block_size": 4}),
    "toeplitz": (ToeplitzLinear, (12, 8), {}),
    "toeplitz, blocks": (ToeplitzLinear, (8, 12), {"block_size": 4}),
    "symmetric toeplitz": (SymmetricToeplitzLinear, (12, 8), {}),
    "hankel": (HankelLinear, (8, 12), {}),
    "hankel, blocks": (HankelLinear, (12, 8), {"block_size": 2}),
    "kronecker": (KroneckerLinear, (12, 8), {}),
    "kronecker, chosen": (KroneckerLinear, (12, 8), {"left_shape": (2, 6)}),
    "low rank": (LowRankLinear, (12, 8), {"rank": 2}),
    "siva": (SivaLinear, (12, 8), {"k": 3}),
    "hydra": (HydraLinear, (12, 8), {"pool_size": 30, "seed": 4}),
}
LAYERS = PROJECTED | {
    "toeplitz-like": (ToeplitzLikeLinear, (12, 8), {"rank": 2}),
    "hankel-like": (HankelLikeLinear, (8, 12), {"rank": 2}),
    "vandermonde": (VandermondeLinear, (12, 8), {}),
    "vandermonde-like": (VandermondeLikeLinear, (12, 8), {"rank": 2}),
    "cauchy-like": (CauchyLikeLinear, (12, 8), {"rank": 2}),
    "hydra, fixed share": (HydraLinear, (12, 8), {"structure": "hankel", "fixed_fraction": 0.1}),
    "hydra, low rank": (HydraLinear, (12, 8), {"structure": "low_rank", "splits": 1, "rank": 2}),
    "hydra, toeplitz-like": (HydraLinear, (12, 8), {"structure": "toeplitz_like", "rank": 1}),
    "hydra, vandermonde": (HydraLinear, (12, 8), {"structure": "vandermonde"}),
}
layer_cases = pytest.mark.parametrize("name", LAYERS)
projected_cases = pytest.mark.parametrize("name", PROJECTED)


def make(name: str, **more) -> StructuredLinear:
    layer_class, sizes, options = LAYERS[name]
    return layer_class(*sizes, **options, **more)


@layer_cases
@pytest.mark.parametrize("bias", [True, False])
def test_to_linear_is_the_same_map(name: str, bias: bool) -> None:
    layer = make(name, bias=bias, dtype=torch.float64)
    linear = layer.to_linear()
    assert (linear.bias is not None) == bias
    assert linear.weight.requires_grad
    for leading in ((), (3,), (2, 3)):
        x = torch.randn(*leading, layer.in_features, dtype=torch.float64)
        oracle.assert_close(layer(x), linear(x))


@projected_cases
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_keeps_the_bias_and_is_the_nearest_layer(name: str, bias: bool) -> None:
    layer_class, sizes, options = LAYERS[name]
    linear = torch.nn.Linear(*sizes, bias=bias, dtype=torch.float64)
    layer = layer_class.from_linear(linear, **options)
    assert (layer.bias is not None) == bias
    if bias:
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias is not linear.bias
    weight = layer.to_linear().weight
    assert weight.dtype == torch.float64
    distance = (linear.weight - weight).norm()
    for _ in range(10):
        other = copy.deepcopy(layer)
        for parameter in other.structured_parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        assert (linear.weight - other.to_linear().weight).norm() > distance
    oracle.assert_close(layer_class.from_linear(layer.to_linear(), **options).to_linear().weight, weight.detach())


@pytest.mark.parametrize("layer_class", [CirculantLinear, BlockCirculantLinear])
def test_from_linear_refuses_what_is_no_linear_layer(layer_class) -> None:
    with pytest.raises(TypeError, match="linear must be a torch.nn.Linear, got Conv1d"):
        layer_class.from_linear(torch.nn.Conv1d(4, 4, 1))


@layer_cases
def test_state_dict_round_trips_and_names_the_parameters_and_constants(name: str) -> None:
    layer, other = make(name), make(name)
    state = layer.state_dict()
    assert set(state) == {*layer.structure.parameter_shapes(), "bias"}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(3, layer.in_features)
    assert torch.equal(layer(x), other(x))


@layer_cases
def test_copies_and_pickles_are_independent_layers_with_the_same_map(name: str) -> None:
    layer = make(name)
    x = torch.randn(3, layer.in_features)
    wanted = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), wanted)
        other.structured_parameters()[0].data.zero_()
        assert torch.equal(layer(x), wanted)


@layer_cases
def test_layers_train_move_and_convert_as_modules_do(name: str) -> None:
    layer = make(name)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    x, target = torch.randn(16, layer.in_features), torch.randn(16, layer.out_features)
    losses = []
    for _ in range(5):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    empty = make(name, device="meta")
    assert empty(x.to("meta")).shape == (16, layer.out_features)
    empty = empty.to_empty(device="cpu")
    empty.reset_parameters()
    assert empty(x).shape == (16, layer.out_features)


# Vandermonde has a variance of its own, of HyDRA's kinds only the linear ones do not start from 0.
OF_ANOTHER_VARIANCE = ("vandermonde", "hydra, low rank", "hydra, toeplitz-like", "hydra, vandermonde")


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in OF_ANOTHER_VARIANCE])
def test_outputs_start_with_the_variance_of_nn_linear(name: str) -> None:
    layer_class, _, options = LAYERS[name]
    larger = {"block_size": 128, "left_shape": (32, 24), "rank": 16, "k": 300, "pool_size": 3000}
    options = {option: larger.get(option, value) for option, value in options.items()}
    layer, linear = layer_class(768, 1536, **options), torch.nn.Linear(768, 1536)
    x = torch.randn(1000, 768)
    assert layer(x).var().item() == pytest.approx(linear(x).var().item(), rel=0.2)
    before = layer(x)
    layer.reset_parameters()
    assert not torch.equal(layer(x), before)


@layer_cases
def test_layers_have_the_derivatives_of_their_structures_with_few_nodes_in_the_graph(name: str) -> None:
    layer = make(name, dtype=torch.float64)
    leaves = [p for p in layer.parameters()]
    for leading in ((3,), (2, 3), ()):
        x = torch.randn(*leading, layer.in_features, dtype=torch.float64, requires_grad=True)
        results = layer(x), layer.structure.linear(x, *layer.structured_parameters(), base=layer.bias)
        if layer.structure.by_formula and x.dim() == 2:
            assert results[0].grad_fn.name() == "AdaptedBackward"
        g = torch.randn_like(results[0])
        first = [torch.autograd.grad(y, (x, *leaves), g, create_graph=True) for y in results]
        second = [torch.autograd.grad(sum(t.square().sum() for t in found), (x, *leaves[:-1])) for found in first]
        for ours, exact in ((results[:1], results[1:]), first, second):
            for one, other in zip(ours, exact, strict=True):
                oracle.assert_close(one.detach(), other.detach())


def test_a_frozen_layer_has_the_gradient_of_x_by_one_product() -> None:
    layer = make("circulant").requires_grad_(False)
    x = torch.randn(3, layer.in_features, requires_grad=True)
    y = layer(x)
    assert y.grad_fn.name() != "AdaptedBackward"
    y.backward(torch.ones_like(y))
    oracle.assert_close(x.grad, torch.ones_like(y).double() @ layer.weight.double())


def test_repr_shows_sizes_blocks_and_bias() -> None:
    assert repr(CirculantLinear(12, 8)) == "CirculantLinear(in_features=12, out_features=8, bias=True)"
    assert repr(BlockCirculantLinear(12, 8, bias=False, block_size=4)) == (
        "BlockCirculantLinear(in_features=12, out_features=8, block_size=4, bias=False)"
    )


def test_layers_that_start_from_zero_give_their_bias() -> None:
    for name in ("hydra, low rank", "hydra, toeplitz-like", "hydra, vandermonde"):
        layer = make(name)
        assert torch.equal(layer(torch.randn(3, 12)), layer.bias.expand(3, 8))


def test_options_come_after_bias_and_ranks_by_name() -> None:
    assert repr(ToeplitzLinear(12, 8, False, 4)) == (
        "ToeplitzLinear(in_features=12, out_features=8, block_size=4, bias=False)"
    )
    assert repr(LowRankLinear(12, 8, rank=2)) == "LowRankLinear(in_features=12, out_features=8, rank=2, bias=True)"
    for layer_class in (ToeplitzLikeLinear, HankelLikeLinear, VandermondeLikeLinear, CauchyLikeLinear, LowRankLinear):
        with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'rank'"):
            layer_class(12, 8)


def test_any_structure_makes_a_layer() -> None:
    layer = StructuredLinear(CirculantProduct(12, 8))
    assert [name for name, _ in layer.named_parameters()] == ["r1", "r2", "bias"]
    x = torch.randn(3, 12)
    assert torch.allclose(layer(x), layer.bias.expand(3, 8))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size must divide in_features and out_features, got 5 for 12 and 8"):
        BlockCirculantLinear(12, 8, block_size=5)
    with pytest.raises(
        ValueError, match=r"x must have shape \(\.\.\., 12\) to go with c of shape \(12,\), got \(3, 8\)"
    ):
        CirculantLinear(12, 8)(torch.zeros(3, 8))


@layer_cases
def test_layers_compile_without_graph_breaks_and_give_the_same_gradients(name: str) -> None:
    torch._dynamo.reset()
    layer = make(name)
    x = torch.randn(5, layer.in_features, requires_grad=True)
    inputs = [x, *layer.parameters()]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(x), layer(x)
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (got, wanted)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) + 1e-6)


@layer_cases
def test_layers_under_autocast_give_its_type_and_gradients_in_that_of_the_parameters(name: str) -> None:
    layer = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(5, layer.in_features))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
