"""The structured GEMM and its pullbacks against the dense float64 matrix, interpreted, and compiled ahead of time.

The interpreter computes in bfloat16 wrongly without a word, so that type is compiled only.
"""

import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.triton import harness

structured = pytest.importorskip("surm_kernels.triton.structured")
structured_fold = pytest.importorskip("surm_kernels.triton.structured_fold")
structured_product = pytest.importorskip("surm_kernels.triton.structured_product")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SCALE = 0.75
GROUPS_AND_TOKENS = ((1, 0), (2, 1), (1, 33))
DTYPES = (torch.float32, torch.float16)

dtype_cases = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
sign_cases = pytest.mark.parametrize("sign", [1, -1], ids=["circulant", "skew"])
kind_cases = pytest.mark.parametrize("kind", ["vandermonde", "vandermonde_like", "cauchy_like"])
reflected_cases = pytest.mark.parametrize("reflected", [False, True], ids=["toeplitz", "hankel"])

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


def cut(w: Tensor, rows: int, columns: int) -> list[list[Tensor]]:
    """The blocks of a matrix."""
    return [list(row.split(columns, 1)) for row in w.split(rows, 0)]


def toeplitz_sums(w: Tensor, rows: int, columns: int, reflected: bool) -> Tensor:
    """The sums of w along the diagonals of each block, antidiagonals if reflected: (M, K, m + n - 1)."""
    offsets = range(1 - rows, columns)

    def sums(block: Tensor) -> Tensor:
        flipped = block.flip(0) if reflected else block.flip(1)
        turned = flipped if reflected else flipped.flip(0)
        return torch.stack([turned.diagonal(offset).sum() for offset in offsets])

    return torch.stack([torch.stack([sums(block) for block in row]) for row in cut(w, rows, columns)])


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


@sign_cases
@dtype_cases
@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 1, 5), (2, 3, 17), (1, 1, 48), (1, 1, 64), (1, 1, 70)])
def test_circulant_products_and_gradients_match_the_dense_matrix(
    blocks: tuple[int, int, int], dtype: torch.dtype, sign: int
) -> None:
    out_blocks, in_blocks, block = blocks
    all_v = torch.randn(2, *blocks).to(dtype)
    all_dense = torch.stack([oracle.matrix(group, sign) for group in all_v])
    for groups, tokens in GROUPS_AND_TOKENS:
        v, dense = all_v[:groups], all_dense[:groups]
        x, g, base = tokens_and_cotangents(groups, tokens, in_blocks * block, out_blocks * block, dtype)
        y, x_gradient = SCALE * x.double() @ dense.mT, SCALE * g.double() @ dense
        sums = [oracle.diagonal_sums(w, block, sign) for w in SCALE * g.double().mT @ x.double()]

        oracle.assert_close(structured.krylov(x, v, base, sign, SCALE, False), base.double() + y)
        got = structured.krylov_backward(g, x, v, sign, SCALE, False)
        assert_gradients_close(got, (x_gradient, torch.stack(sums)))
        got = structured.krylov_backward(x, g, v, sign, SCALE, True)
        assert_gradients_close(got, (y, torch.stack(sums)))


@reflected_cases
@dtype_cases
@pytest.mark.parametrize(
    "blocks",
    [(1, 1, 1, 1), (1, 1, 5, 3), (2, 3, 17, 48), (1, 1, 1, 33), (1, 2, 64, 1), (1, 1, 48, 64), (1, 1, 70, 90)],
)
def test_toeplitz_products_and_gradients_match_the_dense_matrix(
    blocks: tuple[int, int, int, int], dtype: torch.dtype, reflected: bool
) -> None:
    out_blocks, in_blocks, rows, columns = blocks
    all_t = torch.randn(2, out_blocks, in_blocks, rows + columns - 1).to(dtype)
    all_dense = torch.stack([(oracle.hankel if reflected else oracle.toeplitz)(group, columns) for group in all_t])
    for groups, tokens in GROUPS_AND_TOKENS:
        t, dense = all_t[:groups], all_dense[:groups]
        x, g, base = tokens_and_cotangents(groups, tokens, in_blocks * columns, out_blocks * rows, dtype)
        y, x_gradient = SCALE * x.double() @ dense.mT, SCALE * g.double() @ dense
        sums = [toeplitz_sums(w, rows, columns, reflected) for w in SCALE * g.double().mT @ x.double()]

        got = structured.toeplitz(x, t, base, columns, SCALE, False, reflected)
        oracle.assert_close(got, base.double() + y)
        got = structured.toeplitz(g, t, x, columns, SCALE, True, reflected)
        oracle.assert_close(got, x.double() + x_gradient)
        got = structured.toeplitz_backward(g, x, t, columns, SCALE, reflected)
        assert_gradients_close(got, (x_gradient, torch.stack(sums)))


@reflected_cases
def test_16_bit_tokens_meet_a_float32_parameter_in_float32(reflected: bool) -> None:
    t = torch.randn(1, 2, 1, 17 + 20 - 1)
    x, g, base = tokens_and_cotangents(1, 33, 20, 2 * 17, torch.float16)
    dense = (oracle.hankel if reflected else oracle.toeplitz)(t[0], 20)
    y = structured.toeplitz(x, t, base, 20, SCALE, False, reflected)
    oracle.assert_close(y, base.double() + SCALE * x.double() @ dense.T)
    x_gradient, t_gradient = structured.toeplitz_backward(g, x, t, 20, SCALE, reflected)
    assert (x_gradient.dtype, t_gradient.dtype) == (torch.float16, torch.float32)
    oracle.assert_close(x_gradient, SCALE * g.double() @ dense)
    oracle.assert_close(t_gradient[0], toeplitz_sums(SCALE * (g[0].double().T @ x[0].double()), 17, 20, reflected))


@dtype_cases
@kind_cases
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


@kind_cases
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
        lambda x, t, g, base: structured.toeplitz(x, t, base, 17, SCALE, False, False),
        lambda x, t, g, base: structured.toeplitz_pullback(g, x, 17, 17, SCALE, True),
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
    y = structured.krylov(broken, v, None, 1, SCALE, False)
    assert y[0, 33].isnan().all()
    assert torch.equal(y[:, others], structured.krylov(x, v, None, 1, SCALE, False)[:, others])


def test_many_tokens_are_added_in_parts_that_depend_on_the_shapes_alone() -> None:
    x, g = torch.randn(1, 700, 33), torch.randn(1, 700, 20)
    first = structured.toeplitz_pullback(g, x, 20, 33, SCALE, False)
    oracle.assert_close(first[0], toeplitz_sums(SCALE * (g[0].double().T @ x[0].double()), 20, 33, False))
    assert torch.equal(first, structured.toeplitz_pullback(g.clone(), x.clone(), 20, 33, SCALE, False))


def test_float64_is_refused() -> None:
    x, v = torch.randn(1, 3, 4).double(), torch.randn(1, 1, 1, 4).double()
    for call in (
        lambda: structured.krylov(x, v, None, 1, 1.0, False),
        lambda: structured.krylov_pullback(x, x, 4, 1, 1.0),
        lambda: structured.toeplitz_pullback(x, x, 4, 4, 1.0, False),
        lambda: structured.generated(x, [v.flatten()], None, "vandermonde", 1.0),
    ):
        with pytest.raises(ValueError, match="x must be float32, bfloat16 or float16"):
            call()


@harness.case_and_target(AHEAD_OF_TIME)
def test_kernels_compile_without_spills_and_fit_their_targets(case: harness.Case, target: str, compiled) -> None:
    harness.assert_sound(case, target, compiled)
