"""Products with an adapter for every token: each token against its own dense matrix, derivatives, and every refusal."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from surm_kernels import functional, reference
from surm_kernels.block_kinds import CIRCULANT, SKEW_CIRCULANT
from surm_kernels.ops import bank as ops
from surm_kernels.reference.ops import bank as reference_ops
from tests import oracle, test_diagonal

ADAPTERS = 5
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
    """A product with 12 features: the shape of the bank, its matrix for one adapter, and its public function."""

    bank: tuple[int, int]
    outputs: int
    matrix: Callable[[Tensor], Tensor]
    linear: Callable[..., Tensor]
    plain: Callable[..., Tensor]  # by the reference


U, V = torch.linspace(-1, 1, 35).sin().reshape(7, 5), torch.linspace(-2, 2, 60).cos().reshape(12, 5)


def siva_of(module: object) -> Callable[..., Tensor]:
    return lambda x, s, **options: module.siva_linear(x, U.to(s.dtype), s, V.to(s.dtype), **options)


CASES = {
    "circulant": Case(
        (ADAPTERS, 12),
        12,
        lambda c: oracle.f_circulant(c, 1),
        functional.circulant_linear,
        reference.circulant_linear,
    ),
    "siva": Case(
        (ADAPTERS, 5),
        7,
        lambda s: oracle.siva(U.to(s.dtype), s, V.to(s.dtype)),
        siva_of(functional),
        siva_of(reference),
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def some_index(*shape: int) -> Tensor:
    return torch.randint(ADAPTERS, shape)


def exact_of(case: Case, x: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    matrices = torch.stack([case.matrix(row) for row in bank])
    return torch.einsum("...ij,...j->...i", matrices[index], x.double())


@cases
@dtypes
@pytest.mark.parametrize("leading", [(), (1,), (17,), (3, 4), (0,), (2, 0)], ids=str)
def test_every_token_meets_its_own_adapter(case: Case, dtype: torch.dtype, leading: tuple[int, ...]) -> None:
    x, bank, index = torch.randn(*leading, 12).to(dtype), torch.randn(case.bank).to(dtype), some_index(*leading)
    exact = exact_of(case, x, bank, index)
    size = (x.double().norm() * bank.double().norm()).item()
    for base in (None, torch.randn(*leading, case.outputs).to(dtype), torch.randn(case.outputs).to(dtype)):
        wanted = -0.5 * exact if base is None else base.double() - 0.5 * exact
        for linear in (case.linear, case.plain):
            y = linear(x, bank, base=base, scale=-0.5, index=index)
            assert y.dtype == dtype
            if case.outputs == 12:
                oracle.assert_close(y, wanted, size=size)
            else:  # rounded three times, which is seen in few numbers
                between = (x.double() @ V.to(dtype).double()).abs() * bank.double()[index].abs()
                terms = between @ U.to(dtype).double().abs().T + (0 if base is None else base.double().abs())
                test_diagonal.assert_close(y, wanted, "result", size, terms, False)


@cases
@dtypes
@pytest.mark.parametrize(
    ("leading", "rows"),
    [((3, 4), (3,)), ((2, 3, 4), (2, 3)), ((2, 3, 4), (2,)), ((4,), ()), ((3, 0), (3,)), ((0, 4), (0,))],
    ids=str,
)
def test_a_row_of_tokens_meets_one_adapter(
    case: Case, dtype: torch.dtype, leading: tuple[int, ...], rows: tuple[int, ...]
) -> None:
    x, bank, index = torch.randn(*leading, 12).to(dtype), torch.randn(case.bank).to(dtype), some_index(*rows)
    base = torch.randn(*leading, case.outputs).to(dtype)
    leaves = [t.requires_grad_() for t in (x, bank, base)]
    of_tokens = index.view(*rows, *[1] * (len(leading) - len(rows))).expand(leading)
    wanted = case.linear(x, bank, base=base, scale=-0.5, index=of_tokens)
    g = torch.randn(wanted.shape).to(dtype)
    y = case.linear(x, bank, base=base, scale=-0.5, index=index)
    oracle.assert_close(y, wanted.double(), rounding=2)
    assert torch.equal(
        case.plain(x, bank, base=base, scale=-0.5, index=index),
        case.plain(x, bank, base=base, scale=-0.5, index=of_tokens),
    )
    gradients = torch.autograd.grad(y, leaves, g), torch.autograd.grad(wanted, leaves, g)
    for got, wanted_gradient in zip(*gradients, strict=True):
        oracle.assert_close(got, wanted_gradient.double(), rounding=2)


@cases
@dtypes
def test_gradients_add_up_over_the_tokens_of_an_adapter_and_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    tokens = 400
    x, bank = torch.randn(tokens, 12).to(dtype), torch.randn(case.bank).to(dtype)
    base, index = torch.randn(case.outputs).to(dtype), some_index(tokens)
    index[index == 3] = 2  # an adapter that no token meets has a gradient of zeros
    leaves = [t.requires_grad_() for t in (x, bank, base)]
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    matrices = torch.stack([case.matrix(torch.eye(case.bank[1], dtype=dtype)[k]) for k in range(case.bank[1])])
    own = torch.einsum("tk,kij->tij", exact_leaves[1][index], matrices)
    exact = exact_leaves[2] + 0.75 * torch.einsum("tij,tj->ti", own, exact_leaves[0])
    g = (torch.randn(exact.shape) + torch.nn.functional.normalize(exact.detach())).to(dtype)
    gradients = torch.autograd.grad(case.linear(x, bank, base=base, scale=0.75, index=index), leaves, g)
    wanted = torch.autograd.grad(exact, exact_leaves, g.double())
    for got, exact_gradient in zip(gradients, wanted, strict=True):
        oracle.assert_close(got, exact_gradient, rounding=1.8)
    assert (gradients[1][3] == 0).all()


@cases
def test_derivatives_of_both_orders_and_modes_are_right(case: Case) -> None:
    x, bank = (t.double().requires_grad_() for t in (torch.randn(6, 12), torch.randn(case.bank)))
    base, index = torch.randn(6, case.outputs, dtype=torch.float64, requires_grad=True), some_index(6)

    def linear(x: Tensor, bank: Tensor, base: Tensor) -> Tensor:
        return case.linear(x, bank, base=base, scale=0.5, index=index)

    assert torch.autograd.gradcheck(linear, (x, bank, base), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(linear, (x, bank, base))


@cases
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_any_integers_serve_as_an_index(case: Case, dtype: torch.dtype) -> None:
    x, bank, index = torch.randn(9, 12), torch.randn(case.bank), some_index(9)
    assert torch.equal(case.linear(x, bank, index=index.to(dtype)), case.linear(x, bank, index=index))


@cases
def test_one_adapter_for_all_is_the_product_without_an_index(case: Case) -> None:
    x, bank = torch.randn(2, 9, 12), torch.randn(case.bank)
    index = torch.full((1, 1), 3).expand(2, 9)
    oracle.assert_close(case.linear(x, bank, index=index), case.linear(x, bank[3]).double())


@cases
def test_a_row_that_is_not_finite_spoils_no_other(case: Case) -> None:
    x, bank, index = torch.randn(9, 12), torch.randn(case.bank), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    y = case.linear(x, bank, index=index)
    x[4, 5], bank[2, 1] = float("inf"), float("nan")
    spoiled = torch.tensor([False, False, True, False, True, False, False, True, False])
    got = case.linear(x, bank, index=index)
    assert not got[spoiled].isfinite().any()
    assert torch.equal(got[~spoiled], y[~spoiled])


@cases
def test_compiles_and_maps_over_batches(case: Case) -> None:
    bank, index = torch.randn(case.bank), some_index(3, 6)

    def linear(x: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        return case.linear(x, bank, base=x.sum(-1, keepdim=True), scale=0.5, index=index)

    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 6, 12)
    leaves = [t.clone().requires_grad_() for t in (x, bank)]
    for got, wanted in zip(
        torch.autograd.grad(compiled(*leaves, index).sin().sum(), leaves),
        torch.autograd.grad(linear(*leaves, index).sin().sum(), leaves),
        strict=True,
    ):
        oracle.assert_close(got, wanted.double())
    mapped = torch.func.vmap(linear, (0, None, 0))(x, bank, index)
    oracle.assert_close(mapped, linear(x, bank, index).double())


def test_an_index_that_does_not_fit_is_refused_by_name() -> None:
    x, c, index = torch.randn(4, 12), torch.randn(ADAPTERS, 12), some_index(4)
    for error, message, bad in (
        (TypeError, "index must be a torch.Tensor, got list", [0, 1, 2, 3]),
        (TypeError, "index must be int64, int32, int16, int8 or uint8, got float32", index.float()),
        (TypeError, "index must be int64, int32, int16, int8 or uint8, got bool", index > 2),
        (
            ValueError,
            r"index must have the shape \(...\) of x without its features, \(4,\), .*\(4, 1\)",
            index[:, None],
        ),
        (ValueError, r"or what that starts with, got \(3,\)", index[:3]),
        (ValueError, r"or what that starts with, got \(4, 12\)", index[:, None].expand(4, 12)),
        (ValueError, "index must be on the device of x, cpu, got meta", index.to("meta")),
        (ValueError, "index must be between 0 and 4, got 5", index.index_fill(0, torch.tensor([2]), 5)),
        (ValueError, "index must be between 0 and 4, got -1", index.index_fill(0, torch.tensor([0]), -1)),
    ):
        for call in (
            lambda bad=bad: functional.circulant_linear(x, c, index=bad),
            lambda bad=bad: functional.siva_linear(x, U, torch.randn(ADAPTERS, 5), V, index=bad),
        ):
            with pytest.raises(error, match=message):
                call()
    with pytest.raises(ValueError, match=r"c must have shape \(adapters, n\) to go with index"):
        functional.circulant_linear(x, c[0], index=index)
    with pytest.raises(ValueError, match=r"s must have shape \(adapters, k\)"):
        functional.siva_linear(x, U, torch.randn(5), V, index=index)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 12\)"):
        functional.circulant_linear(x[:, 1:], c, index=index)


def test_where_values_are_not_looked_at_an_index_out_of_range_gives_its_row_nan() -> None:
    x, c, s = torch.randn(4, 12), torch.randn(ADAPTERS, 12), torch.randn(ADAPTERS, 5)
    index, there = torch.tensor([0, 5, -1, 4]), torch.tensor([True, False, False, True])
    within = index.clamp(0, 4)
    for module, rows in ((ops, x.unsqueeze(1)), (reference_ops, x)):
        for call in (
            lambda index, module=module, x=rows: module.circulant_bank(x, c, index, None, CIRCULANT, 1.0, False),
            lambda index, module=module, x=rows: module.diagonal_bank(x, U, s, V, index, None, 1.0),
        ):
            assert torch.equal(call(index)[there], call(within)[there])
            assert call(index)[~there].isnan().all()


def test_the_operators_of_the_bank_are_registered_as_torch_wants_them() -> None:
    x, c, index = torch.randn(4, 12), torch.randn(ADAPTERS, 12), some_index(4)
    torch.library.opcheck(torch.ops.surm_kernels.circulant_bank, (x, c, index, None, SKEW_CIRCULANT, 0.5, True))
    s = torch.randn(ADAPTERS, 5)
    torch.library.opcheck(torch.ops.surm_kernels.diagonal_bank, (x, U, s, V, index, torch.randn(4, 7), 0.5))
