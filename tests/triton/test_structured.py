"""The structured GEMM and its pullbacks against the dense float64 matrix, interpreted, and compiled ahead of time.

The interpreter computes in bfloat16 wrongly without a word, so that type is compiled only.
"""

import pytest
import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, HANKEL, TOEPLITZ
from tests import oracle
from tests.grids import Grid, grid_of, grids_in_turns, kind_cases
from tests.triton import harness
from tests.turns import cases

structured = pytest.importorskip("surm_kernels.triton.structured")
structured_fold = pytest.importorskip("surm_kernels.triton.structured_fold")
structured_product = pytest.importorskip("surm_kernels.triton.structured_product")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SCALE = 0.75
GROUPS_AND_TOKENS = ((1, 0), (2, 1), (1, 33))
DTYPES = (torch.float32, torch.float16)

dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
generated_cases = pytest.mark.parametrize("kind", ["vandermonde", "vandermonde_like", "cauchy_like"])

SIZES = ("tokens", "inputs", "outputs", "rows", "columns", "in_blocks", "theta_size", "shape_class")
STRIDES = ("x_group", "x_token", "base_group", "base_token")
ONE_BLOCK = ("in_blocks", "out_blocks", "length", "bands", "bands_above", "shape_class")


def product_case(kind: str, x: str, theta: str, transposed: bool) -> harness.Case:
    """A product with base; theta has no alignment, as a part of it has not, and is one block."""
    name = f"structured product: {kind}{' transposed' if transposed else ''}, {x} by {theta}"
    wide = theta == "fp32"
    kernel = structured_product.wide_product_kernel if wide else structured_product.narrow_product_kernel
    types = {
        **dict.fromkeys(("x", "base", "y"), f"*{x}"),
        "theta": f"*{theta}",
        "scale": "fp32",
        **dict.fromkeys((*SIZES, *STRIDES), "i32"),
    }
    return harness.Case(name, kernel, types, {"KIND": kind, "TRANSPOSED": transposed}, ("in_blocks", "shape_class"))


def fold_case(kind: str, dtype: str, wide: bool, block: int) -> harness.Case:
    types = {
        **dict.fromkeys(("g", "x"), f"*{dtype}"),
        "parts": "*fp32",
        "scale": "fp32",
        **dict.fromkeys(("tokens", "tokens_of_program", "rows", "columns", *ONE_BLOCK), "i32"),
        **dict.fromkeys(("g_group", "g_token", "x_group", "x_token"), "i32"),
    }
    constants = {"KIND": kind, "WIDE": wide, "BLOCK": block, "BLOCK_TOKENS": structured_fold.tokens_at_once(wide)}
    name = f"structured fold: {kind}, {dtype}{', wide' if wide else ''}, tiles of {block}"
    return harness.Case(name, structured_fold.fold_kernels[block], types, constants, ONE_BLOCK)


def sum_case(kind: str, dtype: str, wide: bool) -> harness.Case:
    """The pullback of a generated matrix."""
    cauchy = kind == "cauchy_like"
    parts = ("row_parts", "column_parts") if cauchy else ("node_parts", "weight_parts")
    types = {
        **dict.fromkeys(("g", "x"), f"*{dtype}"),
        **dict.fromkeys(("theta", *parts), "*fp32"),
        "scale": "fp32",
        **dict.fromkeys(("tokens", "tokens_of_program", "rows", "columns", "g_token", "x_token", "shape_class"), "i32"),
        "rank" if cauchy else "in_blocks": "i32",
    }
    if kind == "vandermonde":
        types["weight_parts"] = "none"
    kernel = structured_fold.tuned_cauchy_fold_kernel if cauchy else structured_fold.tuned_vandermonde_fold_kernel
    constants = {"WIDE": wide, "BLOCK": structured_fold.SUM_BLOCK, "BLOCK_TOKENS": structured_fold.tokens_at_once(wide)}
    name = f"structured fold: {kind}, {dtype}{', wide' if wide else ''}"
    return harness.Case(name, kernel, types, constants, ("in_blocks", "rank", "shape_class"))


AHEAD_OF_TIME = [
    product_case("circulant", "bf16", "bf16", False),
    product_case("skew_circulant", "fp32", "fp32", True),
    product_case("toeplitz", "bf16", "bf16", False),
    product_case("toeplitz", "bf16", "fp32", True),
    product_case("hankel", "bf16", "bf16", True),
    product_case("vandermonde", "bf16", "fp32", False),
    product_case("weighted_vandermonde", "fp32", "fp32", True),
    product_case("cauchy_like", "bf16", "fp32", False),
    fold_case("circulant", "bf16", False, 128),
    fold_case("skew_circulant", "fp32", True, 64),
    fold_case("toeplitz", "bf16", True, 64),
    fold_case("hankel", "bf16", False, 32),
    fold_case("toeplitz", "fp32", True, 16),
    sum_case("vandermonde", "bf16", True),
    sum_case("weighted_vandermonde", "fp32", True),
    sum_case("cauchy_like", "bf16", True),
]


def generated_matrix(kind: str, columns: int, parameters: list[Tensor]) -> Tensor:
    """The float64 matrix of its formula, differentiable."""
    v, *rest = (parameter.double() for parameter in parameters)
    if kind == "cauchy_like":
        u, G, H = rest
        return G.T @ H / (v[:, None] - u)
    powers = torch.stack([v**exponent for exponent in range(columns)], 1)
    if kind == "vandermonde":
        return powers
    G, H = rest
    shifts = [torch.stack([torch.nn.functional.pad(h, (k, 0))[:columns] for k in range(columns)]) for h in H]
    return sum(g[:, None] * (powers @ shift) for g, shift in zip(G, shifts, strict=True))


def parameters_of(kind: str, rows: int, columns: int, rank: int) -> list[Tensor]:
    v, u = 2 * torch.rand(rows) - 1, 2 + torch.rand(columns)
    G, H = torch.randn(rank, rows), torch.randn(rank, columns)
    return {"vandermonde": [v], "vandermonde_like": [v, G, H], "cauchy_like": [v, u, G, H]}[kind]


def tokens_and_cotangents(
    groups: int, tokens: int, inputs: int, outputs: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """x, g and a base."""
    return [torch.randn(groups, tokens, size).to(dtype) for size in (inputs, outputs, outputs)]


def assert_gradients_close(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    for position, (gradient, exact_gradient) in enumerate(zip(got, exact, strict=True)):
        oracle.assert_close(gradient, exact_gradient, f"gradient {position}")


# Rows, columns, blocks of a column and blocks of a row; circulant blocks have as many rows as columns.
SHAPES = (
    *((1, 1), (5, 5), (5, 3), (1, 33), (48, 48), (48, 64), (64, 64), (70, 70), (70, 90)),
    *((48, 17, 2, 3), (64, 1, 1, 2)),
)


@cases("w, dtype", grids_in_turns(SHAPES, DTYPES))
def test_products_and_gradients_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    all_values = w.values(2, dtype)
    all_dense = w.matrices(all_values)
    for groups, tokens in GROUPS_AND_TOKENS:
        values, dense = all_values[:groups], all_dense[:groups]
        x, g = w.tokens(groups, tokens, dtype)
        y, x_gradient = SCALE * x.double() @ dense.mT, SCALE * g.double() @ dense
        sums = SCALE * w.pullback(g, x)

        got = structured.grid(x, values, g, w.kind, w.columns, SCALE, False)
        oracle.assert_close(got, g.double() + y)
        got = structured.grid(g, values, x, w.kind, w.columns, SCALE, True)
        oracle.assert_close(got, x.double() + x_gradient)
        got = structured.grid_backward(g, x, values, w.kind, w.columns, SCALE, False)
        assert_gradients_close(got, (x_gradient, sums))
        got = structured.grid_backward(x, g, values, w.kind, w.columns, SCALE, True)
        assert_gradients_close(got, (y, sums))


@kind_cases
def test_16_bit_tokens_meet_float32_values_in_float32(kind: int) -> None:
    w = grid_of(kind, 17, 20, 2, 1)
    values, (x, g) = w.values(), w.tokens(1, 33, torch.float16)
    dense, sums = w.matrices(values), SCALE * w.pullback(g, x)
    y, x_gradient = SCALE * x.double() @ dense.mT, SCALE * g.double() @ dense
    oracle.assert_close(structured.grid(x, values, g, kind, 20, SCALE, False), g.double() + y)
    for rows, transposed, exact in (((g, x), False, x_gradient), ((x, g), True, y)):
        got = structured.grid_backward(*rows, values, kind, 20, SCALE, transposed)
        assert [gradient.dtype for gradient in got] == [torch.float16, torch.float32]
        assert_gradients_close(got, (exact, sums))


@dtype_cases
@generated_cases
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 17, 2), (70, 48, 3), (17, 90, 1)], ids=str)
def test_generated_products_and_gradients_match_the_dense_matrix(
    sizes: tuple[int, int, int], kind: str, dtype: torch.dtype
) -> None:
    rows, columns, rank = sizes
    parameters = [parameter.requires_grad_() for parameter in parameters_of(kind, rows, columns, rank)]
    for groups, tokens in GROUPS_AND_TOKENS:
        x, g, base = tokens_and_cotangents(groups, tokens, columns, rows, dtype)
        exact_x = x.double().requires_grad_()
        dense = generated_matrix(kind, columns, parameters)
        y = SCALE * exact_x @ dense.T
        exact = [gradient.double() for gradient in torch.autograd.grad(y, [exact_x, *parameters], g.double())]

        values = [parameter.detach() for parameter in parameters]
        oracle.assert_close(structured.generated(x, values, base, kind, SCALE), base.double() + y.detach())
        got = structured.generated_backward(g, x, values, kind, SCALE, True, True)
        assert_gradients_close(tuple(got), tuple(exact))


@generated_cases
def test_generated_gradients_that_are_not_needed_are_left_out(kind: str) -> None:
    parameters = parameters_of(kind, 5, 7, 2)
    x, g, _ = tokens_and_cotangents(1, 3, 7, 5, torch.float32)
    both = structured.generated_backward(g, x, parameters, kind, SCALE, True, True)
    of_x = structured.generated_backward(g, x, parameters, kind, SCALE, True, False)
    of_parameters = structured.generated_backward(g, x, parameters, kind, SCALE, False, True)
    assert [gradient.shape for gradient in both] == [tensor.shape for tensor in (x, *parameters)]
    assert all(torch.equal(alone, gradient) for alone, gradient in zip(of_x + of_parameters, both, strict=True))


def test_high_powers_of_nodes_are_accurate_and_vanish_without_a_trace() -> None:
    v = torch.tensor([0.0, 1.0, -1.0, 0.999, -0.5, 1e-30, 1.1])
    one = torch.eye(300)[None]
    powers = structured.generated(one, [v], None, "vandermonde", 1.0)[0].T
    exact = oracle.vandermonde(v, 300)
    oracle.assert_rows_close(powers, torch.where(exact.abs() < torch.finfo(torch.float32).tiny, 0.0, exact))


def test_strided_and_expanded_tensors_give_the_result_of_contiguous_ones() -> None:
    x = torch.randn(40, 2, 34)[::2].transpose(0, 1)[..., ::2]
    g, base = torch.randn(2, 20, 48)[..., 5:39], torch.randn(34).expand(2, 20, 34)
    t = torch.randn(2, 2, 1, 66)[..., ::2]
    for call in (
        lambda x, t, g, base: structured.grid(x, t, base, TOEPLITZ, 17, SCALE, False),
        lambda x, t, g, base: structured.grid_pullback(g, x, HANKEL, 17, 17, SCALE),
    ):
        got = call(x, t, g, base)
        assert got.is_contiguous()
        assert torch.equal(got, call(*(tensor.contiguous() for tensor in (x, t, g, base))))


def test_a_row_that_is_not_finite_spoils_its_own_row_alone() -> None:
    v = torch.randn(1, 2, 2, 20)
    x = torch.randn(1, 35, 40)
    broken = x.clone()
    broken[0, 33, 3] = float("nan")
    others = torch.arange(35) != 33
    y = structured.grid(broken, v, None, CIRCULANT, 20, SCALE, False)
    assert y[0, 33].isnan().all()
    assert torch.equal(y[:, others], structured.grid(x, v, None, CIRCULANT, 20, SCALE, False)[:, others])


def test_many_tokens_are_added_in_parts_that_depend_on_the_shapes_alone() -> None:
    w = grid_of(TOEPLITZ, 20, 33)
    x, g = w.tokens(1, 700)
    first = structured.grid_pullback(g, x, TOEPLITZ, 20, 33, SCALE)
    oracle.assert_close(first, SCALE * w.pullback(g, x))
    assert torch.equal(first, structured.grid_pullback(g.clone(), x.clone(), TOEPLITZ, 20, 33, SCALE))


def test_float64_is_refused() -> None:
    x, v = torch.randn(1, 3, 4).double(), torch.randn(1, 1, 1, 4).double()
    for call in (
        lambda: structured.grid(x, v, None, CIRCULANT, 4, 1.0, False),
        lambda: structured.grid_pullback(x, x, TOEPLITZ, 4, 4, 1.0),
        lambda: structured.generated(x, [v.flatten()], None, "vandermonde", 1.0),
    ):
        with pytest.raises(ValueError, match="x must be float32, bfloat16 or float16"):
            call()


@harness.case_and_target(AHEAD_OF_TIME)
def test_kernels_compile_without_spills_and_fit_their_targets(case: harness.Case, target: str, compiled) -> None:
    harness.assert_sound(case, target, compiled)
