"""Every method on every kind of model: it starts from the model, trains its own numbers alone, switches and adds up."""

import peft
import pytest
import torch
from peft import get_peft_model

from tests.peft.models import MODELS, config_of, each_method, each_model, model_of, output_of


@each_method
@each_model
def test_an_adapter_starts_from_the_model_and_learns(method: str, name: str) -> None:
    model = model_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = output_of(name, model).detach()
    adapted = get_peft_model(model, config_of(method, name))
    torch.testing.assert_close(output_of(name, adapted), wanted)

    trained = [(key, p) for key, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(f".{method}_" in key and key.endswith(".default.weight") for key, _ in trained)
    optimiser = torch.optim.Adam([p for _, p in trained], 0.02)
    losses = []
    for _ in range(6):
        loss = (output_of(name, adapted) - 1).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    with adapted.disable_adapter():
        assert torch.equal(output_of(name, adapted), wanted)
    bare = adapted.unload()
    assert torch.equal(output_of(name, bare), wanted)
    assert all(torch.equal(value, before[key]) for key, value in bare.state_dict().items())


@each_method
@each_model
def test_the_output_is_that_of_the_weights_plus_the_updates(method: str, name: str) -> None:
    adapted = get_peft_model(model_of(name), config_of(method, name, init_weights=False, alpha=3.0)).double()
    found = output_of(name, adapted)
    reference = model_of(name).double()
    for key, layer in adapted.base_model.adapted_layers():
        weight = reference.get_submodule(key).weight
        weight.data += layer.get_delta_weight("default")
        assert layer.get_delta_weight("default").abs().max() > 0
    torch.testing.assert_close(found, output_of(name, reference))


@each_method
def test_adapters_are_switched_added_and_deleted(method: str) -> None:
    adapted = get_peft_model(model_of("llama"), config_of(method, "llama", init_weights=False), adapter_name="one")
    one = output_of("llama", adapted)
    adapted.add_adapter("two", config_of(method, "llama", init_weights=False, alpha=2.0))
    assert torch.equal(output_of("llama", adapted), one)
    adapted.set_adapter("two")
    two = output_of("llama", adapted)
    assert not torch.allclose(one, two, atol=1e-4)

    adapted.base_model.set_adapter(["one", "two"])
    both = output_of("llama", adapted)
    reference = model_of("llama")
    for key, layer in adapted.base_model.adapted_layers():
        weight = reference.get_submodule(key).weight
        weight.data += layer.get_delta_weight("one") + layer.get_delta_weight("two")
    torch.testing.assert_close(both, output_of("llama", reference))

    adapted.set_adapter("one")
    assert torch.equal(output_of("llama", adapted), one)
    adapted.delete_adapter("one")
    assert torch.equal(output_of("llama", adapted), two)
    assert not [key for key, _ in adapted.named_parameters() if ".one." in key]


@each_method
def test_a_frozen_adapter_stays_frozen_when_adapters_were_off(method: str) -> None:
    adapted = get_peft_model(model_of("llama"), config_of(method, "llama", inference_mode=True))
    flags = [p.requires_grad for p in adapted.parameters()]
    assert not any(flags)
    with adapted.disable_adapter():
        pass
    assert [p.requires_grad for p in adapted.parameters()] == flags


@each_method
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"mlp", "vit"}))
def test_all_linear_and_regular_expressions_choose_layers(method: str, name: str) -> None:
    task = "SEQ_CLS" if name == "bert" else None
    adapted = get_peft_model(model_of(name), config_of(method, name, target_modules="all-linear", task_type=task))
    linear = (torch.nn.Linear, peft.tuners.tuners_utils.Conv1D)
    count = sum(isinstance(module, linear) for module in model_of(name).modules())
    assert len(list(adapted.base_model.adapted_layers())) == count - 1  # the head stays as it is
    (first, _), *_ = adapted.base_model.adapted_layers()
    one = get_peft_model(model_of(name), config_of(method, name, target_modules=first.replace(".", r"\.")))
    assert [path for path, _ in one.base_model.adapted_layers()] == [first]
