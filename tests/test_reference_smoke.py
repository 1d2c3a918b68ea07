"""One call of everything above the operators, which on the reference stands for the tests of it.

That is the same Python whatever serves the operators, so its own tests run once, with the compiled library.
"""

import pytest
import torch
from torch import nn

from benchmarks import auto_grid
from surm_kernels import _extension, convert, cost_model, dense
from surm_kernels.command.main import main
from surm_kernels.nn import AdaptedLinear, ToeplitzLinear
from surm_kernels.structures import Circulant, Structure
from tests import adapted, oracle, test_auto_grid, test_demo, updates
from tests.test_command import small_check  # noqa: F401  a fixture


@adapted.squares
def test_structures_have_the_product_the_gradients_and_the_sum_of_their_matrix(structure: Structure) -> None:
    parameters = updates.parameters_of(structure)
    W = updates.matrix(structure, parameters, torch.float64)
    g, x = (torch.randn(5, size, dtype=torch.float64) for size in W.shape)
    weight = torch.randn(W.shape, dtype=torch.float64)
    oracle.assert_close(structure.linear(x, *parameters), x @ W.T)
    oracle.assert_close(structure.gradients(g, x, *parameters)[0], g @ W)
    oracle.assert_close(structure.merge(weight, *parameters), weight + W)


@adapted.strategies
@adapted.small_structures
def test_adapted_layers_train_and_follow_what_they_hold(structure: Structure, strategy: str) -> None:
    layer = adapted.make(structure, strategy)
    adapted.assert_follows(layer)
    adapted.optimise(layer)
    adapted.assert_follows(layer)


def test_layers_come_from_linear_layers_and_become_them() -> None:
    linear, x = nn.Linear(12, 8, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    layer = ToeplitzLinear.from_linear(linear)
    near = layer.to_linear()
    oracle.assert_close(layer(x), near(x).detach())
    oracle.assert_close(ToeplitzLinear.from_linear(near)(x), near(x).detach())


def test_an_update_of_singular_values_starts_from_the_layer_and_can_be_merged() -> None:
    linear, x = nn.Linear(12, 8), torch.randn(3, 12)
    layer = AdaptedLinear.siva(linear, k=4)
    assert torch.equal(layer(x), linear(x))
    nn.init.normal_(layer.s)
    oracle.assert_close(nn.functional.linear(x, layer.merged_weight(), linear.bias), layer(x).double())


def test_parameters_of_other_libraries_are_converted() -> None:
    kernel = torch.randn(2, 3, 4, dtype=torch.float64)
    first_rows = dense.block_circulant(convert.circulant_from_c3a(kernel, 12))[::4].view(2, 3, 4)
    oracle.assert_close(first_rows, kernel / 12)


def test_a_weight_that_serves_many_calls_is_merged() -> None:
    no_gradients = {"parameter_gradients": False, "input_gradient": False}
    assert cost_model.prefers_merged(Circulant(768, 768), 1, torch.float32, **no_gradients)


@pytest.mark.usefixtures("small_check")
def test_commands_say_what_serves_and_check_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert ("the PyTorch reference serves" in capsys.readouterr().out) == (not _extension.available)
    assert main(["check"]) == 0


def test_the_benchmark_of_the_choice_and_the_demo_train() -> None:
    row = auto_grid.row(test_auto_grid.TRAINING, test_auto_grid.HASTY)
    assert row.samples and row.ratio > 0
    test_demo.TestTraining().test_a_tiny_encoder_learns("surm")
