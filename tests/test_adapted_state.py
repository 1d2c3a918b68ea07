"""What an AdaptedLinear keeps, saves and loads: memory, copies, pickles, states, and the constants of SiVA."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, CirculantProduct, Siva, Structure
from tests import oracle
from tests.adapted import (
    SCALE,
    assert_follows,
    make,
    optimise,
    small_structures,
    squares,
    strategies,
    tokens_of,
    trained,
)

# Memory


@strategies
@squares
def test_the_backward_keeps_the_input_and_the_parameters_and_nothing_else(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy, torch.float32)
    x, _ = tokens_of(layer, 2, 50, dtype=torch.float32)  # more than SiVA keeps a projection of
    x.requires_grad_()
    layer(x)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = layer(x)
    assert y.requires_grad and saved
    kept = {t.data_ptr() for t in (x, layer.base.weight, *layer.structured_parameters())}
    assert {t.data_ptr() for t in saved} <= kept


def test_where_streams_run_beside_each_other_no_two_calls_share_the_memory_of_a_merged_weight() -> None:
    layer = make(Circulant(24, 24), "merged", torch.float32).to("meta")  # stands for a GPU
    kept, parameters = layer._product._merged, layer.structured_parameters()
    weights = [kept.of(layer.structure, 1.0, torch.float32, layer.base.weight, parameters).weight for _ in range(3)]
    assert len(set(map(id, weights))) == 3
    assert not kept._spare


@pytest.mark.parametrize("tokens", [48, 49])
def test_for_few_tokens_siva_keeps_their_projection_as_well(tokens: int) -> None:
    layer = make(Siva(96, 96, 40), "direct", torch.float32)
    x, _ = tokens_of(layer, tokens, dtype=torch.float32)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(x)
    assert any(t.shape == (tokens, 40) for t in saved) == (tokens == 48)


@pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])
@squares
def test_states_copies_and_pickles_hold_no_merged_weight(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy, torch.float32)
    x, g = tokens_of(layer, 200, dtype=torch.float32)
    names, size = set(layer.state_dict()), len(pickle.dumps(layer))
    wanted = layer(x).detach()
    layer(x).backward(g)
    layer.zero_grad()
    constants = {"fingerprint"} if structure.constants else set()
    assert set(layer.state_dict()) == names == {"base.weight", "base.bias", *trained(layer), *constants}
    assert len(pickle.dumps(layer)) == size
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), wanted)
        assert other.strategy == strategy


@pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])
@small_structures
def test_a_copy_trains_apart_from_the_original(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    assert_follows(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = [p.detach().clone() for p in trained(layer).values()]
        optimise(other)
        assert_follows(other)
        assert_follows(layer)
        assert all(map(torch.equal, trained(layer).values(), before))


@strategies
def test_refresh_frees_what_is_kept_and_the_layer_works_on(strategy: str) -> None:
    layer = make(CirculantProduct(12, 12), strategy)
    assert_follows(layer)
    layer.refresh()
    assert_follows(layer)


# Saving and loading, constants


def siva_layer(weight: Tensor, **options) -> AdaptedLinear:
    base = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    base.weight.data.copy_(weight)
    nn.init.zeros_(base.bias)
    layer = AdaptedLinear.siva(base, k=6, **options)
    layer.s.data.uniform_(-1, 1)
    return layer


def saved(layer: AdaptedLinear) -> dict[str, Tensor]:
    """The state, through a file; of the adapter alone, as those who share a base keep it."""
    file = io.BytesIO()
    torch.save({name: t for name, t in layer.state_dict().items() if not name.startswith("base.")}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@squares
def test_a_saved_adapter_gives_the_same_layer_on_the_same_base(structure: Structure) -> None:
    layer = make(structure)
    state = saved(layer)
    other = AdaptedLinear(copy.deepcopy(layer.base), structure, SCALE)
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    x, _ = tokens_of(layer, 5)
    oracle.assert_close(other(x).detach(), layer(x).detach())
    other.load_state_dict(layer.state_dict())


def test_a_siva_adapter_is_s_and_a_fingerprint_unless_its_bases_are_saved_too() -> None:
    weight = torch.randn(12, 16)
    assert {name: tuple(t.shape) for name, t in saved(siva_layer(weight)).items()} == {"s": (6,), "fingerprint": (64,)}
    state = saved(siva_layer(weight, save_constants=True))
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "U": (12, 6),
        "s": (6,),
        "V": (16, 6),
        "fingerprint": (64,),
    }


OTHER_BASES = {
    "another weight": lambda weight: torch.randn_like(weight),
    "the weight rounded to bfloat16": lambda weight: weight.bfloat16().to(weight.dtype),
    "a trained weight": lambda weight: weight + 0.01 * torch.randn_like(weight),
}


@pytest.mark.parametrize("other", OTHER_BASES)
def test_a_siva_adapter_is_refused_on_other_bases_and_nothing_is_loaded(other: str) -> None:
    weight = torch.randn(48, 64)
    state = saved(siva_layer(weight))
    layer = siva_layer(OTHER_BASES[other](weight))
    before = layer.s.detach().clone()
    with pytest.raises(RuntimeError, match="fingerprint.*another U and V.*save_constants=True"):
        layer.load_state_dict(state, strict=False)
    assert torch.equal(layer.s, before)
    siva_layer(weight).load_state_dict(state, strict=False)


def test_an_adapter_inside_a_model_is_refused_as_well() -> None:
    model, other = (nn.Sequential(siva_layer(torch.randn(48, 64)), nn.ReLU()) for _ in range(2))
    adapter = {name: t for name, t in model.state_dict().items() if "base." not in name}
    with pytest.raises(RuntimeError, match=r"0\.fingerprint.*another U and V"):
        other.load_state_dict(adapter, strict=False)


def test_a_state_that_brings_its_weight_brings_the_bases_too() -> None:
    model, other = (nn.Sequential(siva_layer(torch.randn(48, 64)), nn.ReLU()) for _ in range(2))
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 64)
    oracle.assert_close(other(x).detach(), model(x).detach().double())
    stranger = nn.Sequential(siva_layer(torch.randn(48, 64)), nn.ReLU())
    with pytest.raises(RuntimeError, match=r"0\.fingerprint.*another U and V"):
        stranger.load_state_dict({**model.state_dict(), "0.base.weight": torch.randn(48, 64)})


def test_saved_bases_are_loaded_over_those_of_the_base() -> None:
    weight = torch.randn(48, 64)
    layer = siva_layer(weight, save_constants=True)
    rounded = weight.bfloat16().float()
    other = siva_layer(rounded, save_constants=True)
    other.load_state_dict(saved(layer), strict=False)
    for name in ("U", "s", "V", "fingerprint"):
        assert torch.equal(getattr(other, name), getattr(layer, name))
    update, exact = (each.merged_weight() - each.base.weight for each in (other, layer))
    assert oracle.error(update, exact.double()) < 1e-6
    again = siva_layer(weight)
    again.load_state_dict(saved(other), strict=False)  # the fingerprint is that of the bases which were loaded


def test_a_layer_converted_to_bfloat16_loads_what_it_saved() -> None:
    weight = torch.randn(48, 64)
    layer = siva_layer(weight).bfloat16()
    other = siva_layer(weight).bfloat16()
    other.load_state_dict(saved(layer), strict=False)
    assert torch.equal(other.s, layer.s)


def test_constants_may_be_given_by_name() -> None:
    U, V = torch.linalg.qr(torch.randn(12, 4))[0], torch.linalg.qr(torch.randn(8, 4))[0]
    layer = AdaptedLinear(nn.Linear(8, 12), Siva(8, 12, 4), constants={"U": U, "V": V})
    assert torch.equal(layer.U, U) and torch.equal(layer.V, V)
    layer.s.data.fill_(2.0)
    torch.testing.assert_close(layer.merged_weight(), layer.base.weight + 2 * U @ V.T)


def test_siva_of_a_base_counts_by_perc_and_adds_nothing_at_the_start() -> None:
    base = nn.Linear(16, 12)
    layer = AdaptedLinear.siva(base, perc=0.5)
    assert 0 < layer.structure.k < 12
    assert layer.structure.basis == "bottom"
    x = torch.randn(3, 16)
    assert torch.equal(layer(x), base(x))
    assert [name for name, _ in layer.named_parameters()].count("s") == 1
    # U and V are singular vectors: the update is along those of the smallest singular values.
    layer.s.data.fill_(1.0)
    values = torch.linalg.svdvals(base.weight.double())
    raised = values.clone()
    raised[-layer.structure.k :] += 1
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.merged_weight().double()), raised.sort(descending=True)[0], rtol=1e-5, atol=1e-5
    )
