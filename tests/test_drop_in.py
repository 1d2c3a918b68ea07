"""What code written for torch.nn.Linear does with a layer: names, attributes, in-place changes, devices, tracers."""

import pytest
import torch
from torch import Tensor, nn

from surm_kernels.structures import CirculantProduct, Structure, ToeplitzLike, Vandermonde
from tests import oracle
from tests.adapted import exact_output, make, tokens_of
from tests.test_nn import layer_cases
from tests.test_nn import make as make_structured

both = pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])

# In place


@layer_cases
def test_the_output_of_a_structured_layer_may_be_changed_in_place(name: str) -> None:
    layer = make_structured(name, dtype=torch.float64)
    for leading in ((3,), (2, 3)):
        x = torch.randn(*leading, layer.in_features, dtype=torch.float64)
        _assert_changes_in_place(layer, layer.to_linear(), x)


@pytest.mark.parametrize("structure", [ToeplitzLike(12, 8, 2), CirculantProduct(12, 8), Vandermonde(12, 8)], ids=repr)
@both
def test_the_output_of_an_adapted_layer_may_be_changed_in_place(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    for leading in ((3,), (2, 3), (40,)):
        _assert_changes_in_place(layer, layer.to_linear(), tokens_of(layer, *leading)[0])


def _assert_changes_in_place(layer: nn.Module, linear: nn.Linear, x: Tensor) -> None:
    """Where it is recorded, and where it was not but what changes it is."""
    shift = torch.full((), 0.5, dtype=x.dtype, requires_grad=True)
    results = []
    for module in (layer, linear):
        tokens = x.clone().requires_grad_()
        y = module(tokens).add_(shift).relu_()
        with torch.no_grad():
            unrecorded = module(tokens.flatten(0, -2))  # that of torch.nn.Linear is a view where x has more dimensions
        z = unrecorded.add_(shift).relu_()
        results.append([y, z, *torch.autograd.grad(y.square().sum() + z.sum(), [tokens, shift])])
    for got, exact in zip(*results, strict=True):
        oracle.assert_close(got.detach(), exact.detach())


@both
def test_a_compiled_output_may_be_changed_in_place(strategy: str) -> None:
    torch._dynamo.reset()
    layer = make(ToeplitzLike(12, 8, 2), strategy)
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    x, _ = tokens_of(layer, 2, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    oracle.assert_close(compiled(x).detach(), exact_output(layer, x).detach().relu())
