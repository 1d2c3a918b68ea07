"""Layers in any combination of structure, strategy, type, shape, strides, context and history are W0 + W in float64.

Sums are held to the size that their terms have, since drawn numbers may cancel.
"""

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from surm_kernels.nn import AdaptedLinear, StructuredLinear
from surm_kernels.structures import Circulant, CirculantProduct, Hydra, LowRank, Siva, Structure, Toeplitz
from tests import updates
from tests.adapted import SCALE, draw, layer_tensors, make, trained

# A few times the spacing of each type, for sums of a few terms and roundings.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 0.04, torch.float16: 0.005}
SMALL: dict[str, Structure] = {
    f"{name} {sizes}": make_structure(*sizes)
    for name, make_structure in updates.FAMILIES.items()
    for sizes in ((12, 8), (7, 11), (12, 12))
} | {
    "circulant in blocks": Circulant(12, 8, 4),
    "hydra": Hydra(12, 8, structure="toeplitz", pool_size=30),
    "hydra with fixed values": Hydra(8, 12, structure="hankel", fixed_fraction=0.3),
    "hydra of vandermonde blocks": Hydra(12, 12, structure="vandermonde"),
}

structures = st.sampled_from(sorted(SMALL)).map(SMALL.__getitem__)
dtypes = st.sampled_from(sorted(TOLERANCES, key=str))
chosen_strategies = st.sampled_from(["auto", "direct", "merged"])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def exact_weight(layer: nn.Module) -> Tensor:
    """W of a structured layer, W0 + scale W of an adapted one, in float64."""
    tensors = layer.structured_parameters()
    W = updates.matrix(layer.structure, tuple(t.detach() for t in tensors), tensors[0].dtype)
    return layer.base.weight.detach().double() + layer.scale * W if isinstance(layer, AdaptedLinear) else W


def assert_near(got: Tensor, exact: Tensor, size: Tensor, name: str) -> None:
    assert got.shape == exact.shape, name
    error, allowed = (got.detach().double() - exact).norm(), TOLERANCES[got.dtype] * size.norm()
    assert error <= allowed, f"{name} is off by {error:.2e}, allowed are {allowed:.2e}"


def assert_output(layer: nn.Module, x: Tensor, y: Tensor) -> None:
    weight = exact_weight(layer)
    bias = torch.zeros((), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    tokens = x.detach().double()
    assert_near(y, tokens @ weight.T + bias, tokens.abs() @ weight.abs().T + bias.abs() + 1e-3, "output")


def strided(x: Tensor, way: str) -> Tensor:
    """The same values in memory of another order."""
    if way == "expanded" and x.dim() > 1:
        return x[:1].expand_as(x)
    if way == "transposed":
        return x.mT.contiguous().mT if x.dim() > 1 else x
    if way == "every other":
        return torch.stack([x, x], -1)[..., 1]
    return x


@contextlib.contextmanager
def context(name: str, autocast: bool) -> Iterator[None]:
    kinds = {"recording": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    with kinds[name](), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        yield


@settings(max_examples=150)
@given(
    structures, chosen_strategies, dtypes, shapes,
    st.sampled_from(["as it comes", "expanded", "transposed", "every other"]),
    st.sampled_from(["recording", "no_grad", "inference"]),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_adapted_layers_have_the_map_and_the_manners_of_a_linear_one(
    structure: Structure, strategy: str, dtype: torch.dtype, leading: tuple[int, ...], way: str, kind: str,
    autocast: bool, bias: bool, training: bool, need_x: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    layer = make(structure, strategy, dtype, bias).train(training)
    x = strided(torch.randn(*leading, layer.in_features, dtype=dtype), way)
    assert_manners(layer, layer.to_linear().requires_grad_(False), x, kind, autocast, need_x)


@settings(max_examples=80)
@given(structures, dtypes, shapes, st.sampled_from(["recording", "no_grad"]), st.booleans(), st.integers(0, 2**31))
def test_structured_layers_have_the_map_and_the_manners_of_a_linear_one(
    structure: Structure, dtype: torch.dtype, leading: tuple[int, ...], kind: str, autocast: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = StructuredLinear(structure, dtype=dtype)
    for parameter, value in zip(layer.structured_parameters(), updates.parameters_of(structure), strict=True):
        parameter.data.copy_(value)
    x = torch.randn(*leading, layer.in_features, dtype=dtype)
    assert_manners(layer, layer.to_linear().requires_grad_(False), x, kind, autocast, True)


def assert_manners(layer: nn.Module, linear: nn.Linear, x: Tensor, kind: str, autocast: bool, need_x: bool) -> None:
    """Values, gradients, type and shape of the output, and that it may be changed in place; twice, for what is kept."""
    before = x.clone()
    for _ in range(2):
        tokens = x.detach().requires_grad_(need_x)
        with context(kind, autocast):
            y, wanted = layer(input=tokens), linear(input=tokens)
            assert (y.dtype, y.shape, y.is_inference()) == (wanted.dtype, wanted.shape, wanted.is_inference())
            assert y.requires_grad == (kind == "recording")
            assert_output(layer, x, y)
            values = y.detach().clone()
            if kind == "recording":
                assert_gradients(layer, tokens, y)
                y = y + 0
            y.mul_(2)
            assert torch.equal(y.detach(), 2 * values)
        assert torch.equal(x, before)


def assert_gradients(layer: nn.Module, x: Tensor, y: Tensor) -> None:
    """That of x by the exact weight, and of the bias; test_adapted_training has those of the parameters."""
    g = torch.randn(y.shape, dtype=y.dtype)
    leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
    gradients = torch.autograd.grad(y, leaves, g, retain_graph=True)
    assert [(t.shape, t.dtype) for t in gradients] == [(t.shape, t.dtype) for t in leaves]
    if x.requires_grad:
        weight, cotangents = exact_weight(layer), g.double()
        error = (gradients[0].double() - cotangents @ weight).norm()
        size = (cotangents.abs() @ weight.abs()).norm()
        assert error <= max(TOLERANCES[y.dtype], TOLERANCES[x.dtype]) * size


@settings(max_examples=40)
@given(structures, chosen_strategies, dtypes, st.sampled_from([torch.inf, -torch.inf, torch.nan]), st.integers(0, 4))
def test_a_token_out_of_range_spoils_its_own_row_alone(
    structure: Structure, strategy: str, dtype: torch.dtype, value: float, row: int
) -> None:
    torch.manual_seed(0)
    layer = make(structure, strategy, dtype)
    x = torch.randn(5, layer.in_features, dtype=dtype)
    x[row, -1] = value
    y = layer(x).detach()
    assert not y[row].isfinite().all()
    others = torch.arange(5) != row
    assert_output(layer, x[others], y[others])


class History(RuleBasedStateMachine):
    """An adapted layer through a life of training, moving, saving and serving."""

    @initialize(
        structure=st.sampled_from(
            [Circulant(12, 12), CirculantProduct(12, 8), Toeplitz(8, 12), LowRank(12, 8, 2), Siva(12, 8, 3)]
        ),
        strategy=chosen_strategies,
        save_constants=st.booleans(),
    )
    def build(self, structure: Structure, strategy: str, save_constants: bool) -> None:
        torch.manual_seed(0)
        self.layer = make(structure, strategy, save_constants=save_constants)

    def tokens(self, count: int = 3) -> Tensor:
        return torch.randn(count, self.layer.in_features).to(self.layer.base.weight.dtype)

    @rule(reentrant=st.sampled_from([None, False, True]))
    def train(self, reentrant: bool | None) -> None:
        self.layer.train()
        x = self.tokens().requires_grad_()
        y = self.layer(x) if reentrant is None else checkpoint(self.layer, x, use_reentrant=reentrant)
        y.sum().backward()
        torch.optim.SGD(trained(self.layer).values(), lr=0.01).step()
        self.layer.zero_grad()

    @rule(count=st.sampled_from([1, 3, 40]))
    def serve(self, count: int) -> None:
        self.layer.eval()
        x = self.tokens(count)
        with torch.inference_mode():
            assert_output(self.layer, x, self.layer(x).clone())

    @rule(assign=st.booleans())
    def load(self, assign: bool) -> None:
        other = copy.deepcopy(self.layer)
        draw(other)
        self.layer.load_state_dict(other.state_dict(), assign=assign)

    @rule(dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    def cast(self, dtype: torch.dtype) -> None:
        self.layer.to(dtype)

    @rule()
    def offload(self) -> None:
        weight = self.layer.base.weight
        self.layer.base.weight = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        self.layer.base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)

    @rule(way=st.sampled_from([copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]))
    def copy(self, way: Callable[[AdaptedLinear], AdaptedLinear]) -> None:
        original, self.layer = self.layer, way(self.layer)
        draw(original)

    @rule(strategy=chosen_strategies, scale=st.sampled_from([SCALE, -1.5, 0.0]))
    def choose(self, strategy: str, scale: float) -> None:
        self.layer.strategy, self.layer.scale = strategy, scale

    @rule(through_data=st.booleans(), frozen=st.booleans())
    def change(self, through_data: bool, frozen: bool) -> None:
        for t in [self.layer.base.weight] if frozen else trained(self.layer).values():
            if through_data:
                t.data.mul_(0.9)
            else:
                with torch.no_grad():
                    t.mul_(0.9)

    @rule()
    def merge(self) -> None:
        exact = exact_weight(self.layer)
        with torch.no_grad():
            for weight in (self.layer.weight, self.layer.merged_weight(), self.layer.to_linear().weight):
                assert_near(weight, exact, exact, "weight")
                weight.zero_()

    @rule()
    def borrow_parameters(self) -> None:
        others = {name: 2 * p.detach() for name, p in trained(self.layer).items()}
        x = self.tokens()
        lent = copy.deepcopy(self.layer)
        lent.load_state_dict(layer_tensors(lent) | others, strict=False)
        with torch.no_grad():
            assert_output(lent, x, functional_call(self.layer, others, (x,)))

    @rule(train=st.booleans())
    def share(self, train: bool) -> None:
        self.layer.train(train)
        draw(self.layer)
        x = self.tokens()

        def call(_: int) -> Tensor:
            with torch.no_grad():
                return self.layer(x)

        with ThreadPoolExecutor(4) as threads:
            for y in threads.map(call, range(8)):
                assert_output(self.layer, x, y)

    @rule()
    def refresh(self) -> None:
        self.layer.refresh()

    @invariant()
    def is_the_sum_of_both(self) -> None:
        if hasattr(self, "layer"):
            x = self.tokens()
            assert_output(self.layer, x, self.layer(x))
            with torch.no_grad():
                assert_output(self.layer, x, self.layer(x))


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=30, stateful_step_count=15)
