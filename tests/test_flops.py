"""FlopCounterMode counts every operator: what the cost model says, the frozen product beside it, nothing twice."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from surm_kernels import nn, structures
from surm_kernels._namespace import NAMESPACE
from surm_kernels.ops import _flops, grid
from surm_kernels.structures import Structure
from tests import updates
from tests.test_import import run

TOKENS = 10


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_every_operator_has_a_formula() -> None:
    names = {name.removeprefix(f"{NAMESPACE}::") for name in torch._C._dispatch_get_all_op_names()}
    operators = {name for name in names if "::" not in name}
    assert operators == set(_flops.FORMULAS)
    assert {getattr(getattr(torch.ops, NAMESPACE), name) for name in operators} <= set(flop_registry)


#: Their products prepare the parameters by operators of their own, or take more than the nominal work.
OTHERS = ("hankel-like", "hydra, vandermonde", "circulant diagonal")


@pytest.mark.parametrize("name", [name for name in updates.STRUCTURES if not name.startswith(OTHERS)])
def test_a_product_takes_the_work_of_the_structure(name: str) -> None:
    structure = updates.STRUCTURES[name]
    x = torch.randn(TOKENS, structure.in_features)
    parameters = [torch.rand(shape) for shape in structure.parameter_shapes().values()]
    assert counted(lambda: structure.linear(x, *parameters)) == pytest.approx(
        2 * TOKENS * structure.token_work(), abs=2
    )


FROZEN = 2 * TOKENS * 24 * 24


@pytest.mark.parametrize("strategy", ["direct", "merged"])
@pytest.mark.parametrize("structure", [structures.Toeplitz(24, 24), structures.LowRank(24, 24, 2)], ids=repr)
def test_an_adapted_layer_counts_its_frozen_product_and_the_update(structure: Structure, strategy: str) -> None:
    """Whatever the strategy: a mode of dispatch sees the layer as it is written."""
    layer = nn.AdaptedLinear(torch.nn.Linear(24, 24), structure, strategy=strategy)
    x = torch.randn(TOKENS, 24, requires_grad=True)
    update = 2 * TOKENS * structure.token_work()
    assert counted(lambda: layer(x)) == pytest.approx(FROZEN + update, abs=2)
    assert counted(lambda: layer(x).sum().backward()) == pytest.approx(2 * FROZEN + 3 * update, abs=2)


def test_a_backward_that_alone_is_counted_has_the_frozen_product_too() -> None:
    structure = structures.Toeplitz(24, 24)
    layer = nn.AdaptedLinear(torch.nn.Linear(24, 24), structure, strategy="direct")
    y = layer(torch.randn(TOKENS, 24, requires_grad=True)).sum()
    assert counted(y.backward) == pytest.approx(FROZEN + 4 * TOKENS * structure.token_work(), abs=2)


WORK = 2 * TOKENS * structures.Circulant(12, 12).token_work()


def test_what_the_operators_of_a_grid_count() -> None:
    x, values = torch.randn(1, TOKENS, 12), torch.randn(1, 1, 1, 12)
    spectrum, weight = grid.grid_spectrum(values, 0, 12, False), torch.randn(12, 12)
    for call, work in (
        (lambda: grid.grid(x, values, None, 0, 12, 1.0, True), WORK),
        (lambda: grid.grid_pullback(x, x, 0, 12, 12, 1.0), WORK),
        (lambda: grid.grid_backward(x, x, values, 0, 12, 1.0, False), 2 * WORK),
        (lambda: grid.grid_by_spectrum(x, spectrum, None, 0, 1, 1, 12, 12, 1.0), WORK),
        (lambda: grid.grid_spectrum(values, 0, 12, False), WORK / TOKENS / 4),
        (lambda: grid.grid_dense(values, 0, 12), 2 * 12 * 12),
        (lambda: grid.grid_dense_adjoint(weight[None], 0, 12, 12), 2 * 12 * 12),
        (lambda: grid.grid_merge(weight, values[0], 0, 12, 1.0, None, weight), 2 * 12 * 12),
    ):
        assert counted(call) == pytest.approx(work, abs=1)


def test_what_the_other_operators_count() -> None:
    """A product for every result; the operators are called as such, below what makes them differentiable."""
    operators = getattr(torch.ops, NAMESPACE)
    x, x2, g = torch.randn(1, TOKENS, 12), torch.randn(TOKENS, 12), torch.randn(1, TOKENS, 6)
    left, a, b = torch.randn(1, 2, 12), torch.randn(1, 3, 4), torch.randn(1, 2, 3)
    u, s, v, index = torch.randn(1, 6, 4), torch.randn(1, 4), torch.randn(1, 12, 4), torch.zeros(TOKENS).long()
    ldr, kronecker, diagonal = (
        2 * TOKENS * structure.token_work()
        for structure in (
            structures.ToeplitzLike(12, 12, 2),
            structures.Kronecker(12, 6, (3, 4)),
            structures.Siva(12, 6, 4),
        )
    )
    dense = 2 * TOKENS * 12 * 6
    for name, arguments, work in (
        ("ldr", (x, left, left, None, 12, 1.0, False, False), ldr),
        ("ldr_pullback_left", (x, x, left, 1.0, False), ldr),
        ("ldr_pullback_right", (x, x, left, 1.0, False), ldr),
        ("ldr_backward", (x, x, left, left, 1.0, False), 3 * ldr),
        ("kronecker", (x, a, b, None, 1.0, False), kronecker),
        ("kronecker_pullback_left", (g, x, b, 1.0), kronecker),
        ("kronecker_pullback_right", (g, x, a, 1.0), kronecker),
        ("kronecker_backward", (g, x, a, b, 1.0), 3 * kronecker),
        ("diagonal", (x, u, s, v, None, 1.0), diagonal),
        ("diagonal_pullback", (g, x, u, v, 1.0), diagonal),
        ("diagonal_backward", (g, x, u, s, v, 1.0), 2 * diagonal),
        ("diagonal_bank", (x2, u[0], s, v[0], index, None, 1.0), diagonal),
        ("circulant_bank", (x2, torch.randn(1, 12), index, None, 0, 1.0, False), WORK),
        ("generated", (x, [torch.rand(6)], None, "vandermonde", 1.0), dense),
        ("generated_backward", (g, x, [torch.rand(6)], "vandermonde", 1.0, True, True), 2 * dense),
        ("generated_backward", (g, x, [torch.rand(6)], "vandermonde", 1.0, False, True), dense),
        ("powers", (torch.rand(6), 12), 2 * 6 * 12),
        ("stochastic_sum", (torch.rand(6, 12), torch.rand(6, 12), torch.tensor(1), torch.rand(6, 12).half()), 6 * 12),
        ("rounding_key", (torch.rand(12), [torch.rand(6)], 1), 12 + 6),
        ("empty_rows", (x2, 6), 0),
    ):
        assert counted(lambda: getattr(operators, name)(*arguments)) == pytest.approx(work, abs=1), name  # noqa: B023


def test_formulas_are_registered_whichever_is_imported_first() -> None:
    ours, counter = "import surm_kernels", "import torch.utils.flop_counter as counter"
    found = f"print(torch.ops.{NAMESPACE}.grid in counter.flop_registry)"
    for first, second in ((ours, counter), (counter, ours)):
        assert run(f"{first}\n{second}\nimport torch\n{found}") == "True\n"
