"""Mixed batches: every row gets what it gets alone with its adapter; what changes in between, and what is refused."""

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import get_peft_model
from torch import Tensor, nn

from surm_kernels.peft import SurmConfig, _mixed_product
from tests.peft.models import config_of, each_method, model_of

NAMES = ["two", "__base__", "one", "two", "three", "one"]
IDS = torch.arange(6 * 5).reshape(6, 5) % 31 + 1
MODELS = ("llama", "bert", "gpt2")  # rectangular, square, Conv1D
#: Options of each of three adapters that do not share a product.
UNLIKE = ({}, {"structure": "toeplitz"}, {"structure": "block_circulant", "block_size": 16})


def three(model: nn.Module, *configurations: Any) -> Any:
    """Adapters one, two and three."""
    names = ("one", "two", "three")
    adapted = get_peft_model(model, configurations[0], adapter_name=names[0])
    for name, configuration in zip(names[1:], configurations[1:], strict=True):
        adapted.add_adapter(name, configuration)
    return adapted.eval()


def three_of(method: str, name: str, **options: object) -> Any:
    """With factors of their own."""
    alphas = (1.0, -2.0, 0.5)
    return three(model_of(name), *(config_of(method, name, init_weights=False, alpha=a, **options) for a in alphas))


@torch.no_grad()
def alone(model: Any, names: Sequence[str], ids: Tensor) -> Tensor:
    """The logits of every row in a batch of its own."""
    found = []
    for name, row in zip(names, ids, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                found.append(model(input_ids=row[None]).logits)
        else:
            model.set_adapter(name)
            found.append(model(input_ids=row[None]).logits)
    return torch.cat(found)


@torch.no_grad()
def mixed(model: Any, names: Sequence[str] = NAMES, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, adapter_names=list(names)).logits


def products(model: Any, kind: type) -> list[Any]:
    """Those of a kind that the layers have kept."""
    kept = [layer.mixed._parts for _, layer in model.base_model.adapted_layers()]
    return [part for parts in kept if parts for part in parts[1] if isinstance(part, kind)]


@each_method
@pytest.mark.parametrize("name", MODELS)
def test_every_row_gets_what_it_gets_alone(method: str, name: str) -> None:
    model = three_of(method, name)
    wanted = alone(model, NAMES, IDS)
    assert (wanted[0] - wanted[3]).abs().max() > 1e-3
    torch.testing.assert_close(mixed(model), wanted)
    for active in ("one", "three"):  # which does not matter
        model.set_adapter(active)
        torch.testing.assert_close(mixed(model), wanted)
    with model.disable_adapter():
        base = model(input_ids=IDS).logits
    assert torch.equal(mixed(model)[1], base[1])
    assert torch.equal(mixed(model, ["__base__"] * 6), base)
    torch.testing.assert_close(mixed(model, ["one"] * 6), alone(model, ["one"] * 6, IDS))


def test_adapters_that_are_alike_share_a_product_and_others_do_not() -> None:
    for model, kind, count in (
        (three_of("surm", "bert"), _mixed_product.CirculantBank, 4),
        (three_of("surm", "bert", structure="block_circulant", block_size=32), _mixed_product.CirculantBank, 4),
        (three_of("siva", "llama", k=5), _mixed_product.SivaBank, 4),
        (three_of("siva", "gpt2", k=5).to(torch.float64), _mixed_product.SivaBank, 2),
        (three_of("surm", "llama"), _mixed_product.Groups, 2),  # v_proj is rectangular
        (three_of("hydra", "bert"), _mixed_product.Groups, 4),
    ):
        torch.testing.assert_close(mixed(model), alone(model, NAMES, IDS))
        assert len(products(model, kind)) == count


def test_adapters_with_unlike_options_and_layers_meet_in_one_batch() -> None:
    options = [config_of("surm", "bert", init_weights=False, **unlike) for unlike in UNLIKE]
    model = three(model_of("bert"), *options)
    torch.testing.assert_close(mixed(model), alone(model, NAMES, IDS))

    places = (["query"], ["value", "classifier"], ["query", "value"])
    options = [config_of("surm", "bert", init_weights=False, target_modules=place) for place in places]
    model = three(model_of("bert"), *options)
    torch.testing.assert_close(mixed(model), alone(model, NAMES, IDS))

    sizes = [config_of("siva", "bert", init_weights=False, k=k) for k in (3, 4, 3)]
    model = three(model_of("bert"), *sizes)
    torch.testing.assert_close(mixed(model), alone(model, NAMES, IDS))
    assert [len(part._adapters) for part in products(model, _mixed_product.SivaBank)] == [2, 1] * 4


@each_method
def test_sixteen_bits_and_autocast(method: str) -> None:
    model = three_of(method, "bert")
    wanted = mixed(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, each = mixed(model), alone(model, NAMES, IDS)
    assert found.dtype is each.dtype
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    model.to(torch.bfloat16)
    found, each = mixed(model), alone(model, NAMES, IDS)
    assert found.dtype is torch.bfloat16
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert (each - wanted).norm() < 0.02 * wanted.norm()


@each_method
def test_gradients_are_those_of_the_rows(method: str) -> None:
    model = three_of(method, "bert")
    trained = [p.requires_grad_() for key, p in model.named_parameters() if f".{method}_" in key]
    g = torch.randn(6, 3)
    found = torch.autograd.grad(model(input_ids=IDS, adapter_names=NAMES).logits, trained, g)
    wanted = [torch.zeros_like(p) for p in trained]
    for name, row, own in zip(NAMES, IDS, g, strict=True):
        if name == "__base__":
            continue
        model.set_adapter(name)
        for parameter in trained:  # that of the other adapters is 0
            parameter.requires_grad_()
        gradients = torch.autograd.grad(model(input_ids=row[None]).logits, trained, own[None], allow_unused=True)
        wanted = [w if d is None else w + d for w, d in zip(wanted, gradients, strict=True)]
    for got, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-4)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.T5ForConditionalGeneration(config).eval()


@each_method
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"generation_config": transformers.GenerationConfig(num_beams=2, num_return_sequences=2)}],
    ids=("greedy", "beams", "configuration"),
)
@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_generation(method: str, options: dict[str, Any], architecture: str) -> None:
    targets = {"target_modules": ["q", "v"] if architecture == "t5" else ["q_proj", "v_proj"]}
    configurations = [config_of(method, "", init_weights=False, alpha=a, **targets) for a in (20.0, -20.0, 10.0)]
    model = three(_t5() if architecture == "t5" else model_of("llama"), *configurations)
    options = {**copy.deepcopy(options), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 99}
    names = ["two", "__base__", "one"]
    found = model.generate(input_ids=IDS[:3], adapter_names=names, **options)
    rows = []
    for name, row in zip(names, IDS, strict=False):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(model.generate(input_ids=row[None], **options))
        else:
            model.set_adapter(name)
            rows.append(model.generate(input_ids=row[None], **options))
    assert torch.equal(found, torch.cat(rows))


def test_values_that_change_between_calls_are_seen() -> None:
    model = three_of("surm", "bert")
    mixed(model)
    spectra = [part._spectra[1] for part in products(model, _mixed_product.CirculantBank)]
    mixed(model, NAMES[::-1])
    again = [part._spectra[1] for part in products(model, _mixed_product.CirculantBank)]
    assert spectra and all(a is b for a, b in zip(spectra, again, strict=True))

    for change in ("data", "training", "loading", "replacing", "type"):
        before = mixed(model)
        parameters = {key: p for key, p in model.named_parameters() if ".surm_" in key and ".two." in key}
        if change == "data":
            for parameter in parameters.values():
                parameter.data.mul_(2)
        elif change == "training":
            optimiser = torch.optim.SGD(parameters.values(), 0.01)
            for parameter in parameters.values():
                parameter.grad = torch.ones_like(parameter)
            optimiser.step()
        elif change == "loading":
            model.load_state_dict({key: torch.randn_like(p) for key, p in parameters.items()}, strict=False)
        elif change == "replacing":
            model.load_state_dict(
                {key: torch.randn_like(p) for key, p in parameters.items()}, strict=False, assign=True
            )
        else:
            model.double()
        torch.testing.assert_close(mixed(model), alone(model, NAMES, IDS))
        assert change == "type" or not torch.equal(mixed(model)[0], before[0])


def test_adapters_come_and_go() -> None:
    model = three_of("surm", "bert")
    wanted = mixed(model)
    model.add_adapter("four", config_of("surm", "bert", init_weights=False, alpha=7.0))
    assert torch.equal(mixed(model), wanted)
    with_four = mixed(model, ["four", *NAMES[1:]])
    assert torch.equal(with_four[1:3], wanted[1:3]) and not torch.equal(with_four[0], wanted[0])
    model.delete_adapter("four")
    assert torch.equal(mixed(model), wanted)
    model.delete_adapter("two")
    model.add_adapter("two", config_of("surm", "bert", init_weights=False, alpha=3.0))
    model.eval()
    torch.testing.assert_close(mixed(model), alone(model, NAMES, IDS))
    copied = copy.deepcopy(model)
    assert torch.equal(mixed(copied), mixed(model))


@each_method
def test_modules_that_are_saved_whole_are_mixed_too(method: str) -> None:
    configurations = [
        config_of(method, "bert", init_weights=False, modules_to_save=saved)
        for saved in (["classifier"], None, ["classifier"])
    ]
    model = three(model_of("bert"), *configurations)
    head = model.base_model.model.classifier
    for name, own in head.modules_to_save.items():
        nn.init.normal_(own.weight, std={"one": 1.0, "three": 2.0}[name])
    for active in ("one", "two", "three"):
        model.set_adapter(active)
        found = mixed(model)
        wanted = alone(model, NAMES, IDS)
        torch.testing.assert_close(found, wanted)
    assert (wanted[4] - wanted[0]).abs().max() > 0.1


@each_method
def test_what_makes_no_sense_is_refused_and_leaves_the_model_working(method: str) -> None:
    model = three_of(method, "llama")
    wanted = mixed(model)
    for error, message, names in (
        (TypeError, "adapter_names must be a list of str, got 'one'", "one"),
        (TypeError, "adapter_names must be a list of str", ["one", 2]),
        (ValueError, r"must be among one, two, three and __base__, got 'four', 'six'", ["four", *NAMES[:4], "six"]),
        (ValueError, r"but got 5 and 6 respectively; .*num_beams", NAMES[:5]),
        (ValueError, r"but got 2 and 6 respectively; .*num_beams", NAMES[:2]),
    ):
        with pytest.raises(error, match=message):
            model(input_ids=IDS, adapter_names=names)
        model.set_adapter("one")
        assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert torch.equal(mixed(model), wanted)
    with pytest.raises(ValueError, match="got 2 and . respectively; where generate"):
        model.generate(input_ids=IDS, adapter_names=NAMES[:2], max_new_tokens=2)

    for module in (model, model.base_model.model.model.layers[0]):
        module.train()
        with pytest.raises(ValueError, match=r"in training mode. Call eval\(\) first"):
            model(input_ids=IDS, adapter_names=NAMES)
        model.eval()
    model.merge_adapter(["one"])
    with pytest.raises(ValueError, match="please call `unmerge_adapter` first"):
        model(input_ids=IDS, adapter_names=NAMES)
    model.unmerge_adapter()
    assert torch.equal(mixed(model), wanted)


def test_many_adapters_are_not_all_named() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), config_of("surm", "", target_modules=["0"])).eval()
    for name in range(12):
        model.add_adapter(f"a{name}", config_of("surm", "", target_modules=["0"]))
    with pytest.raises(ValueError, match=r"default, a0, .*, a8 and 3 more and __base__, got 'a12'"):
        model(torch.randn(1, 4), adapter_names=["a12"])


def test_adapters_that_are_off_give_the_base() -> None:
    model = three_of("surm", "bert")
    with model.disable_adapter():
        base = model(input_ids=IDS).logits
        assert torch.equal(mixed(model), base)
    model.base_model.disable_adapter_layers()
    assert torch.equal(mixed(model), base)


def test_an_exception_in_a_layer_leaves_no_hook() -> None:
    model = three_of("surm", "llama")
    wanted = mixed(model)
    last = model.base_model.model.model.layers[-1]

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    handle = last.register_forward_pre_hook(fail)
    for call in (mixed, lambda model: model.generate(input_ids=IDS, adapter_names=NAMES, max_new_tokens=2)):
        with pytest.raises(RuntimeError, match="out of luck"):
            call(model)
    handle.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.set_adapter("one")
    torch.testing.assert_close(model(input_ids=IDS).logits, alone(model, ["one"] * 6, IDS))
    assert torch.equal(mixed(model), wanted)


def test_threads_do_not_see_each_others_names() -> None:
    model = three_of("surm", "bert")
    orders = (NAMES, NAMES[::-1], ["three"] * 6)
    wanted = [mixed(model, names) for names in orders]
    model.set_adapter("one")
    plain = model(input_ids=IDS).logits.detach()
    failures: list[str] = []

    def work(turn: int) -> None:
        for _ in range(15):
            if turn == len(orders):
                with torch.no_grad():
                    same = torch.allclose(model(input_ids=IDS).logits, plain, atol=1e-6)
            else:
                same = torch.allclose(mixed(model, orders[turn]), wanted[turn], atol=1e-6)
            if not same:
                failures.append(f"thread {turn}")

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(len(orders) + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_call_looks_only_at_the_adapters_of_its_batch() -> None:
    model = three_of("surm", "bert")
    mixed(model)
    looked_at: list[str] = []
    for key, module in model.named_modules():
        if ".surm_" in key and key.endswith((".one", ".two", ".three")):
            module.__class__ = _Watched
            module.__dict__["key"], module.__dict__["looked_at"] = key, looked_at
    mixed(model, ["one", "three"] * 3)
    assert looked_at and not any(".two" in key for key in looked_at)


def calls_of(work: Callable[[], object]) -> int:
    """How many functions of Python are called."""
    count = 0

    def see(frame: object, event: str, _: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def growth(make: Callable[[], Any]) -> float:
    """How many calls adding an adapter takes more for every adapter that is there."""
    model = get_peft_model(model_of("bert"), make(), adapter_name="a0")
    counts = [calls_of(lambda number=number: model.add_adapter(f"a{number}", make())) for number in range(1, 20)]
    return (counts[-1] - counts[2]) / 16


@each_method
def test_adding_an_adapter_takes_no_more_for_those_that_are_there_than_c3a_does(method: str) -> None:
    c3a = growth(lambda: peft.C3AConfig(block_size=16, target_modules=["query", "value"]))
    assert growth(lambda: config_of(method, "bert", target_modules=["query", "value"])) <= c3a


@each_method
def test_adding_an_adapter_leaves_the_others_as_they_are(method: str) -> None:
    model = get_peft_model(model_of("bert"), config_of(method, "bert", inference_mode=True), adapter_name="one")
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    assert not any(flags.values())
    model.add_adapter("two", config_of(method, "bert"))
    assert {key: p.requires_grad for key, p in model.named_parameters() if ".two." not in key} == flags
    model.set_adapter("two")
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    assert {key for key, flag in flags.items() if flag} == {k for k in flags if ".two.weight" in k}
    model.add_adapter("three", config_of(method, "bert"))
    found = {key: p.requires_grad for key, p in model.named_parameters()}
    assert found == {**{key: False for key in found}, **flags}
    assert len(list(model.named_modules())) == len({key for key, _ in model.named_modules()})
    names = {key.split(".")[-2] for key in found if f".{method}_" in key}
    assert names == {"one", "two", "three"}
    with pytest.raises(ValueError, match="not"):
        model.add_adapter("four", config_of(method, "bert", target_modules=["nothing"]))
    assert {key: p.requires_grad for key, p in model.named_parameters()} == found


class _Watched(nn.Module):
    """Tells when its tensor is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            self.looked_at.append(self.key)
        return super().__getattr__(name)


@pytest.mark.parametrize("shape", [(0, 5, 12), (6, 0, 12), (6, 12), (6, 2, 3, 12)], ids=str)
@each_method
def test_layers_take_rows_of_any_shape(method: str, shape: tuple[int, ...]) -> None:
    options = {"target_modules": ["0"], "init_weights": False}
    model = three(nn.Sequential(nn.Linear(12, 12)), *(config_of(method, "", **options) for _ in range(3)))
    x, names = torch.randn(shape), NAMES[: shape[0]]
    with torch.no_grad():
        found = model(x, adapter_names=names)
        for name, row, got in zip(names, x, found, strict=True):
            if name == "__base__":
                continue
            model.set_adapter(name)
            torch.testing.assert_close(got, model(row[None])[0])
    assert found.shape == shape


def test_an_input_without_rows_is_refused() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(6, 6)), SurmConfig(target_modules=["0"])).eval()
    with pytest.raises(ValueError, match=r"of rows, got an input of shape \(6,\)"):
        model(torch.randn(6), adapter_names=["default"] * 6)
