"""accelerate(): PEFT's C3A and LoKr against dense matrices in float64, everything else of theirs as it was."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft")

from peft.tuners.c3a.layer import C3ALinear  # noqa: E402
from peft.tuners.lokr import layer as lokr_layers  # noqa: E402

from surm_kernels import cost_model  # noqa: E402
from surm_kernels.peft import _c3a as c3a_layers  # noqa: E402
from surm_kernels.peft import accelerate, accelerated, restore  # noqa: E402
from tests import oracle  # noqa: E402
from tests.test_import import run  # noqa: E402

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# (block size, blocks of the output, blocks of the input)
GRIDS = [(b, *blocks) for b in (1, 2, 3, 4, 6, 8) for blocks in ((1, 1), (2, 3), (3, 2))] + [
    (96, 2, 1),
    (96, 8, 8),
    (768, 1, 1),
    (768, 1, 2),
]
LOKR = {
    "whole": {"r": 64},
    "low rank": {"r": 2},
    "both of low rank": {"r": 1, "decompose_both": True},
    "factor 4": {"r": 2, "decompose_factor": 4},
}
lokr_options = pytest.mark.parametrize("options", LOKR.values(), ids=LOKR.keys())


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    restore(verbose=False)


def adapted(config: Any, inputs: int, outputs: int, dtype: torch.dtype = torch.float32, adapters: int = 1) -> nn.Module:
    """A linear layer in a model of PEFT's with active adapters; trained numbers are float32, float64 with the layer."""
    model = peft.get_peft_model(nn.Sequential(nn.Linear(inputs, outputs, dtype=dtype)), config)
    for number in range(1, adapters):
        model.add_adapter(str(number), copy.copy(config))
    model.base_model.set_adapter(list(model.peft_config))
    for name, parameter in model.named_parameters():
        if "base_layer" not in name:
            parameter.requires_grad_()
            nn.init.normal_(parameter)
    return model.double() if dtype is torch.float64 else model


def c3a(inputs: int, outputs: int, size: int, dtype: torch.dtype = torch.float32, adapters: int = 1) -> nn.Module:
    return adapted(peft.C3AConfig(block_size=size, target_modules=["0"]), inputs, outputs, dtype, adapters)


def lokr(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    config = peft.LoKrConfig(target_modules=["0"], alpha=3, **options)
    return adapted(config, inputs, outputs, dtype)


def layer_of(model: nn.Module) -> Any:
    return model.base_model.model[0]


def exact_update(kernel: Tensor) -> Tensor:
    """C3A's update in float64: first rows of circulant blocks, divided by in_features."""
    _, blocks_in, size = kernel.shape
    return oracle.matrix(kernel.flip(-1).roll(1, -1), 1.0) / (blocks_in * size)


def without_weight(model: nn.Module) -> nn.Module:
    """The model with a base layer that gives its bias alone, so that roundings are those of the update."""
    nn.init.zeros_(layer_of(model).base_layer.weight)
    return model


both = pytest.mark.parametrize("make", [lambda: c3a(12, 12, 4), lambda: lokr(12, 12, r=2)], ids=["c3a", "lokr"])


@dtypes
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}-{grid[1]}x{grid[2]}")
def test_c3a_has_the_output_and_gradients_of_the_dense_matrix(grid: tuple[int, int, int], dtype: torch.dtype) -> None:
    size, blocks_out, blocks_in = grid
    inputs, outputs = size * blocks_in, size * blocks_out
    model = without_weight(c3a(inputs, outputs, size, dtype))
    layer = layer_of(model)
    kernel = layer.c3a_kernel["default"]
    x = torch.randn(3, 7, inputs).to(dtype).requires_grad_()
    g = torch.randn(3, 7, outputs).to(dtype)
    exact_x, exact_kernel = (t.detach().double().requires_grad_() for t in (x, kernel))
    wanted = layer.base_layer.bias.detach().double() + exact_x @ exact_update(exact_kernel).T
    exact = torch.autograd.grad(wanted, (exact_x, exact_kernel), g.double())

    with accelerated():
        y = model(x)
        x_gradient, kernel_gradient = torch.autograd.grad(y, (x, kernel), g)
    assert (y.dtype, x_gradient.dtype, kernel_gradient.dtype) == (dtype, dtype, kernel.dtype)
    oracle.assert_close(y, wanted.detach(), "output")
    oracle.assert_close(x_gradient, exact[0], "gradient of x")
    oracle.assert_close(kernel_gradient, exact[1], "gradient of the kernel")


@pytest.mark.parametrize("merged", [False, True])
def test_c3a_is_right_whether_it_is_merged_into_the_weight_or_not(
    merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "prefers_merged", lambda *_, **__: merged)
    model = c3a(12, 8, 4, torch.float64)
    layer = layer_of(model)
    weight, kernel = layer.base_layer.weight, layer.c3a_kernel["default"]
    x, g = torch.randn(5, 12).double().requires_grad_(), torch.randn(5, 8).double()
    for _ in range(2):
        whole = weight + exact_update(kernel)
        wanted = x @ whole.T + layer.base_layer.bias
        with accelerated():
            y = model(x)
            assert (c3a_layers.products[layer]._merged._merged is not None) is merged
            torch.testing.assert_close(y, wanted)
            for ours, exact in zip(
                *(torch.autograd.grad(t, (x, kernel), g, retain_graph=True) for t in (y, wanted)), strict=True
            ):
                torch.testing.assert_close(ours, exact)
        assert layer not in c3a_layers.products  # restored layers keep nothing
        with torch.no_grad():
            kernel.mul_(-0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_gradient_of_the_kernel_alone_is_not_rounded_to_16_bits(dtype: torch.dtype) -> None:
    model = c3a(12, 8, 4, dtype)
    kernel = layer_of(model).c3a_kernel["default"]
    x, g = torch.randn(9, 12).to(dtype), torch.randn(9, 8).to(dtype)
    exact_kernel = kernel.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(x.double() @ exact_update(exact_kernel).T, exact_kernel, g.double())
    with accelerated():
        y = model(x)
        (gradient,) = torch.autograd.grad(y, kernel, g)
    assert y.dtype is dtype
    assert gradient.dtype is torch.float32
    oracle.assert_close(gradient, exact)


@pytest.mark.parametrize("kernel_dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_kernels_of_any_type_give_the_type_of_x(kernel_dtype: torch.dtype) -> None:
    model = without_weight(c3a(12, 8, 4))
    layer = layer_of(model)
    layer.c3a_kernel.to(kernel_dtype)
    x = torch.randn(5, 12)
    with accelerated():
        y = model(x)
    assert y.dtype is torch.float32
    wanted = layer.base_layer.bias.double() + x.double() @ exact_update(layer.c3a_kernel["default"]).T
    oracle.assert_close(y.detach(), wanted.detach())


def test_without_gradients_c3a_stays_in_16_bits_and_its_output_may_be_changed_in_place() -> None:
    model = c3a(12, 8, 4, torch.bfloat16)
    with accelerated():
        with torch.no_grad():
            y = model(torch.randn(3, 5, 12, dtype=torch.bfloat16))
        assert y.dtype is torch.bfloat16
        y += 1


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_c3a_gives_what_peft_gives_but_for_the_gradient_of_the_input(size: int) -> None:
    model = c3a(24, 48, size)
    x = torch.randn(5, 24)
    wanted, own = model(x), torch.autograd.grad(model(x).square().sum(), layer_of(model).c3a_kernel["default"])[0]
    with accelerated():
        found, ours = model(x), torch.autograd.grad(model(x).square().sum(), layer_of(model).c3a_kernel["default"])[0]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours, own)


def test_c3a_gives_autocasts_type() -> None:
    model = without_weight(c3a(12, 8, 4))
    layer = layer_of(model)
    kernel = layer.c3a_kernel["default"]
    x, g = torch.randn(5, 12, requires_grad=True), torch.randn(5, 8).bfloat16()
    with accelerated():
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        gradients = torch.autograd.grad(y, (x, kernel), g)
    assert y.dtype is torch.bfloat16
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]
    exact_kernel = kernel.detach().double().requires_grad_()
    update = x.detach().bfloat16().double() @ exact_update(exact_kernel).T
    oracle.assert_close(y.detach(), layer.base_layer.bias.detach().bfloat16().double() + update.detach())
    oracle.assert_close(gradients[1], torch.autograd.grad(update, exact_kernel, g.double())[0])


@pytest.mark.parametrize("leading", [(0,), (2, 0)], ids=str)
def test_empty_batches_work(leading: tuple[int, ...]) -> None:
    for model in (c3a(12, 8, 4), lokr(12, 8, r=2)):
        x = torch.randn(*leading, 12, requires_grad=True)
        with accelerated():
            y = model(x)
            y.sum().backward()
        assert y.shape == (*leading, 8)
        assert x.grad.shape == x.shape
        assert all(p.grad.count_nonzero() == 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("sizes", [(12, 12), (12, 8)], ids=str)
def test_active_adapters_are_added(sizes: tuple[int, int]) -> None:
    model = c3a(*sizes, 4, torch.float64, adapters=3)
    layer, x = layer_of(model), torch.randn(5, sizes[0], dtype=torch.float64)
    total = sum(exact_update(kernel) for kernel in layer.c3a_kernel.values())
    with accelerated():
        oracle.assert_close(model(x).detach(), (layer.base_layer(x) + x @ total.T).detach())


def test_a_keyword_keeps_pefts_chaining() -> None:
    model = c3a(12, 12, 4, adapters=3)
    x = torch.randn(5, 12)
    wanted = model(x)
    with accelerated():
        assert not torch.allclose(model(x), wanted, rtol=1e-3)
        with accelerated(chain_adapters=True):
            torch.testing.assert_close(model(x), wanted)
        assert not torch.allclose(model(x), wanted, rtol=1e-3)


def test_chained_adapters_of_a_rectangular_layer_are_refused() -> None:
    model = c3a(12, 8, 4, adapters=2)
    with accelerated(chain_adapters=True), pytest.raises(ValueError, match="x must have shape .* the C3A kernel"):
        model(torch.randn(5, 12))


@pytest.mark.parametrize("make", [lambda: c3a(12, 8, 4, adapters=2), lambda: lokr(12, 8, r=2)], ids=["c3a", "lokr"])
def test_disabled_and_merged_adapters_are_pefts_bit_for_bit(make: Any) -> None:
    def results(model: nn.Module) -> list[Tensor]:
        x, layer = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)), layer_of(model)
        with torch.no_grad():
            with model.disable_adapter():
                disabled = model(x)
            model.merge_adapter()
            merged, weight = model(x), layer.base_layer.weight.clone()
            with model.disable_adapter():
                unmerged = model(x)
            return [disabled, merged, weight, unmerged, layer.base_layer.weight.clone()]

    model = make()
    wanted = results(copy.deepcopy(model))
    with accelerated():
        found = results(model)
    assert all(map(torch.equal, found, wanted))


def test_the_base_layer_gets_all_arguments() -> None:
    class Base(nn.Linear):
        def forward(self, x: Tensor, factor: float = 1.0, *, shift: float = 0.0) -> Tensor:
            return super().forward(x) * factor + shift

    model = c3a(12, 8, 4)
    layer = layer_of(model)
    layer.base_layer.__class__ = Base
    x = torch.randn(5, 12)
    wanted = layer(x, 3.0, shift=2.0)
    with accelerated():
        torch.testing.assert_close(layer(x, 3.0, shift=2.0), wanted)


def test_c3a_can_be_differentiated_twice_and_mapped() -> None:
    model = c3a(6, 9, 3, torch.float64)
    kernel = layer_of(model).c3a_kernel["default"]
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)

    def output(x: Tensor, value: Tensor) -> Tensor:
        name = "base_model.model.0.c3a_kernel.default"
        return torch.func.functional_call(model, {name: value}, (x,))

    with accelerated():
        assert torch.autograd.gradcheck(output, (x, kernel))
        assert torch.autograd.gradgradcheck(output, (x, kernel))
        rows = torch.randn(4, 2, 6, dtype=torch.float64)
        torch.testing.assert_close(torch.func.vmap(model)(rows), model(rows))
        each = torch.func.vmap(torch.func.grad(lambda value, x: output(x, value).square().sum()), (None, 0))
        found = each(kernel, rows).sum(0)
        torch.testing.assert_close(found, torch.autograd.grad(model(rows).square().sum(), kernel)[0])


@lokr_options
@pytest.mark.parametrize("sizes", [(96, 60), (61, 97), (12, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_lokr_has_the_output_and_gradients_of_the_dense_matrix(
    options: dict[str, Any], sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    model = without_weight(lokr(*sizes, dtype, **options))
    layer = layer_of(model)
    x = torch.randn(3, 7, sizes[0], dtype=dtype, requires_grad=True)
    trained = [p for p in model.parameters() if p.requires_grad]

    double = copy.deepcopy(model).double()
    exact_x = x.detach().double().requires_grad_()
    W = layer_of(double).get_delta_weight("default")
    wanted = layer.base_layer.bias.detach().double() + exact_x @ W.T
    g = wanted.detach().to(dtype)  # sums of squares, which do not cancel in the gradient of a single number
    exact = torch.autograd.grad(wanted, [exact_x, *(p for p in double.parameters() if p.requires_grad)], g.double())

    with accelerated():
        y = model(x)
        gradients = torch.autograd.grad(y, [x, *trained], g)
    oracle.assert_close(y, wanted.detach(), "output")
    for gradient, one in zip(gradients, exact, strict=True):
        oracle.assert_close(gradient, one, "gradient")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["cast", "autocast"])
@lokr_options
def test_lokr_in_16_bits_is_as_exact_as_pefts_own(options: dict[str, Any], dtype: torch.dtype, autocast: bool) -> None:
    model = lokr(96, 60, torch.float32 if autocast else dtype, **options)
    x = torch.randn(50, 96, dtype=torch.float32 if autocast else dtype)
    exact = copy.deepcopy(model).double()(x.double()).detach()

    def output() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=autocast):
            return model(x).detach()

    own = output()
    with accelerated():
        found = output()
    assert found.dtype is own.dtype
    # Autocast rounds both factors where PEFT has it round their product: four roundings instead of three.
    factor = (4 / 3) ** 0.5 if autocast else 1.0
    assert oracle.error(found, exact) <= 1.05 * factor * oracle.error(own, exact)


@pytest.mark.parametrize("training", [True, False])
def test_lokr_forms_no_kronecker_product(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a Kronecker product was formed")

    model = lokr(12, 8, r=2, rank_dropout=0.0 if training else 0.5).train(training)
    monkeypatch.setattr(torch, "kron", refuse)
    with accelerated():
        model(torch.randn(5, 12))
    with pytest.raises(AssertionError, match="was formed"):
        model(torch.randn(5, 12))


@pytest.mark.parametrize("options", [{"rank_dropout": 0.5}, {"rank_dropout": 0.5, "rank_dropout_scale": True}], ids=str)
def test_rank_dropout_in_training_is_pefts_bit_for_bit(options: dict[str, Any]) -> None:
    model, x = lokr(12, 8, r=2, **options).train(), torch.randn(5, 12)
    torch.manual_seed(1)
    wanted = model(x)
    with accelerated():
        torch.manual_seed(1)
        assert torch.equal(model(x), wanted)


def test_module_dropout_drops_the_whole_update() -> None:
    model, x = lokr(12, 8, r=2, module_dropout=1.0).train(), torch.randn(5, 12)
    with accelerated():
        assert torch.equal(model(x), layer_of(model).base_layer(x))
        assert not torch.equal(model.eval()(x), layer_of(model).base_layer(x))


def test_convolutions_are_not_touched() -> None:
    before = [vars(one)["_get_delta_activations"] for one in (lokr_layers.Conv1d, lokr_layers.Conv2d)]
    config = peft.LoKrConfig(r=2, target_modules=["0"], init_weights=False)
    model, x = peft.get_peft_model(nn.Sequential(nn.Conv2d(4, 6, 3)), config), torch.randn(2, 4, 5, 5)
    wanted = model(x)
    with accelerated():
        assert [vars(one)["_get_delta_activations"] for one in (lokr_layers.Conv1d, lokr_layers.Conv2d)] == before
        assert torch.equal(model(x), wanted)


@both
def test_checkpoints_are_pefts(make: Any, tmp_path: Any) -> None:
    model, x = make().eval(), torch.randn(5, 12)
    model.save_pretrained(tmp_path / "own")
    own = model(x)
    with accelerated():
        model.save_pretrained(tmp_path / "accelerated")
        base = nn.Sequential(copy.deepcopy(layer_of(model).base_layer))
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "own")
        torch.testing.assert_close(loaded(x), own)
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("own", "accelerated")]
    assert files[0].read_bytes() == files[1].read_bytes()


@both
def test_copies_and_pickles_follow_the_class(make: Any) -> None:
    model, x = make().eval(), torch.randn(5, 12)
    own = model(x)
    with accelerated():
        found = model(x)
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert all(torch.equal(one(x), found) for one in copies)
    assert all(torch.equal(one(x), own) for one in copies)


@both
def test_an_accelerated_model_compiles_whole(make: Any) -> None:
    model, x = make().eval(), torch.randn(5, 12, requires_grad=True)
    with accelerated():
        y = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(y, model(x))
        (found,), (wanted,) = (torch.autograd.grad(one.square().sum(), x) for one in (y, model(x)))
        torch.testing.assert_close(found, wanted)


def test_what_was_compiled_before_is_compiled_anew() -> None:
    model, x = c3a(12, 12, 4, adapters=2), torch.randn(5, 12)
    compiled = torch.compile(model, backend="eager")
    own = model(x)
    torch.testing.assert_close(compiled(x), own)
    with accelerated():
        added = model(x)
        assert not torch.allclose(added, own, rtol=1e-3)
        torch.testing.assert_close(compiled(x), added)
    torch.testing.assert_close(compiled(x), own)


def functions() -> list[Any]:
    return [vars(C3ALinear)["forward"], vars(lokr_layers.Linear)["_get_delta_activations"]]


def test_restore_gives_the_very_same_functions_back() -> None:
    own = functions()
    accelerate(verbose=False)
    first = functions()
    assert all(one is not other for one, other in zip(first, own, strict=True))
    assert [one.__doc__ for one in first] == [one.__doc__ for one in own]
    accelerate(verbose=False)
    assert functions() == first
    for _ in range(2):
        restore(verbose=False)
        assert all(one is other for one, other in zip(functions(), own, strict=True))


def test_blocks_nest_and_end_with_what_was_before() -> None:
    own = functions()
    with pytest.raises(KeyError), accelerated():
        outer = functions()
        with accelerated(chain_adapters=True):
            assert functions() != outer
            restore(verbose=False)
            assert functions() == own
        assert functions() == outer
        raise KeyError
    assert functions() == own
    accelerate(verbose=False)
    with accelerated():
        pass
    assert functions() == outer


def test_it_prints_what_it_changed_and_only_that(capsys: pytest.CaptureFixture[str]) -> None:
    restore()
    with accelerated():
        pass
    assert capsys.readouterr().out == ""
    accelerate()
    names = "c3a's C3ALinear.forward and lokr's Linear._get_delta_activations"
    assert capsys.readouterr().out == (
        f"surm_kernels: runs {names} of PEFT {peft.__version__}; active C3A adapters are added; restore() undoes it\n"
    )
    accelerate(chain_adapters=True)
    assert "are chained" in capsys.readouterr().out
    restore()
    assert capsys.readouterr().out == f"surm_kernels: {names} are PEFT's own again\n"


def another_forward(self: Any, x: Tensor, alpha: float) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("owner", "name", "value", "message"),
    [
        (C3ALinear, "forward", another_forward, r"it takes \(self, x, alpha\) instead of \(self, x, \*args"),
        (lokr_layers.Linear, "_get_delta_activations", another_forward, "does not know lokr's Linear"),
        (C3ALinear, "other_param_names", ("block_size", "scaling"), "its class has the fields .*scaling"),
        (lokr_layers, "Linear", nn.Linear, "it has no such method"),
    ],
    ids=["forward", "activations", "fields", "class"],
)
def test_a_peft_that_is_not_known_is_refused_before_anything_changes(
    owner: Any, name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value)
    before = vars(C3ALinear)["forward"]
    with pytest.raises(RuntimeError, match=message) as error:
        accelerate()
    assert f"PEFT {peft.__version__}" in str(error.value)
    assert vars(C3ALinear)["forward"] is before


def test_a_release_that_was_not_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "__version__", "0.22.0")
    with pytest.warns(UserWarning, match="tested on PEFT 0.21, not on 0.22.0"):
        accelerate(verbose=False)


def test_without_peft_the_import_says_what_to_install() -> None:
    hidden = (
        "import importlib.metadata as m\ndef version(name): raise m.PackageNotFoundError(name)\nm.version = version\n"
    )
    program = hidden + "try: import surm_kernels.peft\nexcept ImportError as e: print(e)"
    assert run(program) == "surm_kernels.peft needs peft >= 0.21: pip install 'surm-kernels[peft]'\n"
