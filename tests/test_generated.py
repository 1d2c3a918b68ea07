"""Vandermonde, Vandermonde-like and Cauchy-like products against the dense matrix, and all their derivatives."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from surm_kernels import _matrices, functional
from surm_kernels.ops import _panels as implementation
from tests import oracle

RANK = 3
KINDS: dict[str, tuple[Callable, Callable]] = {
    "vandermonde": (functional.vandermonde_linear, oracle.vandermonde),
    "vandermonde_like": (functional.vandermonde_like_linear, oracle.vandermonde_like),
    "cauchy_like": (functional.cauchy_like_linear, oracle.cauchy_like),
}
kinds = pytest.mark.parametrize("kind", KINDS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000]
SHAPES = [*((n, n) for n in SIZES), (5, 3), (3, 5), (1, 7), (7, 1), (64, 192), (1000, 97), (97, 1000), (400, 768)]


def parameters_of(kind: str, m: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Parameters of an m x n matrix; the nodes v are in [-1, 1] with both ends, 0 and almost 1 among them."""
    v = torch.cat([torch.tensor([1, -1, 0, 0.999]), torch.empty(m).uniform_(-1, 1)])[:m].double()
    u = torch.empty(n, dtype=torch.float64).uniform_(1.5, 3)
    G, H = torch.randn(RANK, m).double(), torch.randn(RANK, n).double()
    every = {"vandermonde": (v,), "vandermonde_like": (v, G, H), "cauchy_like": (v, u, G, H)}[kind]
    return tuple(t.to(dtype) for t in every)


def matrix_of(kind: str, n: int, parameters: tuple[Tensor, ...]) -> Tensor:
    formula = KINDS[kind][1]
    return formula(*parameters, n) if kind == "vandermonde" else formula(*parameters)


def problem(kind: str, m: int, n: int, dtype: torch.dtype, tokens: int = 9) -> tuple:
    """Tokens, parameters, base and a gradient of the output, with the exact output and gradients."""
    parameters = parameters_of(kind, m, n, dtype)
    x, base, g = (torch.randn(tokens, size).to(dtype) for size in (n, m, m))
    leaves = tuple(t.double().requires_grad_() for t in (x, base, *parameters))
    y = leaves[1] + 0.7 * leaves[0] @ matrix_of(kind, n, leaves[2:]).T
    # A gradient that leans towards the output, so that sums over the tokens do not cancel by chance.
    g = (g + torch.nn.functional.normalize(y.detach(), dim=1)).to(dtype)
    return x, base, parameters, g, y.detach(), torch.autograd.grad(y, leaves, g.double(), allow_unused=True)


@kinds
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (dtype, shape)
        for dtype in DTYPES
        for shape in SHAPES
        # Of large matrices one wide type and one of 16 bits, in turns.
        if max(shape) < 384 or (DTYPES.index(dtype) + SHAPES.index(shape)) % 2 == 0
    ],
    ids=str,
)
def test_product_and_gradients_are_those_of_the_dense_matrix(
    kind: str, dtype: torch.dtype, shape: tuple[int, int], poisoned_memory: None
) -> None:
    x, base, parameters, g, exact, exact_gradients = problem(kind, *shape, dtype)
    leaves = [t.requires_grad_() for t in (x, base, *parameters)]
    y = KINDS[kind][0](x, *parameters, base=base, scale=0.7)
    oracle.assert_close(y.detach(), exact)
    for index, (got, wanted) in enumerate(zip(torch.autograd.grad(y, leaves, g), exact_gradients, strict=True)):
        wanted = torch.zeros(got.shape, dtype=torch.float64) if wanted is None else wanted
        oracle.assert_close(got, wanted, f"gradient {index}")


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 1000, 1024, 1025, 2500])
def test_any_number_of_tokens_serves(kind: str, dtype: torch.dtype, tokens: int, poisoned_memory: None) -> None:
    x, base, parameters, g, exact, exact_gradients = problem(kind, 12, 7, dtype, tokens)
    leaves = [t.requires_grad_() for t in (x, base, *parameters)]
    y = KINDS[kind][0](x, *parameters, base=base, scale=0.7)
    oracle.assert_close(y.detach(), exact)
    for index, (got, wanted) in enumerate(zip(torch.autograd.grad(y, leaves, g), exact_gradients, strict=True)):
        oracle.assert_close(got, wanted, f"gradient {index}")


@kinds
def test_each_gradient_is_the_same_when_it_is_asked_for_alone(kind: str) -> None:
    x, base, parameters, g, _, _ = problem(kind, 70, 20, torch.float32)
    leaves = [t.requires_grad_() for t in (x, base, *parameters)]
    together = torch.autograd.grad(KINDS[kind][0](x, *parameters, base=base), leaves, g)
    for index, wanted in enumerate(together):
        alone = [t.detach().requires_grad_(place == index) for place, t in enumerate(leaves)]
        y = KINDS[kind][0](alone[0], *alone[2:], base=alone[1])
        (got,) = torch.autograd.grad(y, alone[index], g)
        assert torch.equal(got, wanted)


@kinds
def test_strided_and_expanded_tensors_serve(kind: str) -> None:
    parameters = [torch.stack([t, t], -1)[..., 0] for t in parameters_of(kind, 70, 20, torch.float32)]
    dense = matrix_of(kind, 20, tuple(parameters))
    for x in (torch.randn(20, 9).T, torch.randn(9, 40)[:, ::2], torch.randn(20).expand(9, 20)):
        leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
        y = KINDS[kind][0](*leaves)
        oracle.assert_close(y.detach(), x.double() @ dense.T)
        gradients = torch.autograd.grad(y.sum(), leaves)  # an expanded gradient of the output
        oracle.assert_close(gradients[0], torch.ones(9, 70, dtype=torch.float64) @ dense)


@kinds
def test_no_tensor_as_large_as_the_matrix_is_made(kind: str) -> None:
    m, n = 768, 640
    parameters, x, g = parameters_of(kind, m, n, torch.float32), torch.randn(1, 8, n), torch.randn(1, 8, m)
    sizes = RecordSizes()
    with sizes:
        implementation.generated(x, parameters, None, kind, 1.0)
        implementation.generated_backward(g, x, parameters, kind, 1.0, True, True)
    assert m * n / 4 < sizes.largest <= m * n / 2


class RecordSizes(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        result = operator(*arguments, **(keywords or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_backward_keeps_only_the_input_and_the_parameters() -> None:
    tensors = torch.randn(1, 4, 7), *parameters_of("cauchy_like", 5, 7, torch.float32)
    x, *parameters = (t.requires_grad_() for t in tensors)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        _matrices.cauchy_like(*parameters).product(x, None, 1.0)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (x, *parameters)]


@pytest.mark.parametrize("node", [0.7, 0.05, 1e-8, 1e-30])
def test_powers_below_the_normal_numbers_become_zero(node: float) -> None:
    matrix = functional.vandermonde_linear(torch.eye(768), torch.tensor([node])).flatten()
    oracle.assert_close(matrix, oracle.vandermonde(torch.tensor([node]), 768).flatten())
    assert matrix[0] == 1
    assert not ((matrix != 0) & (matrix.abs() < torch.finfo(torch.float32).tiny)).any()


@kinds
def test_a_row_that_is_not_finite_spoils_that_row_alone(kind: str) -> None:
    parameters, x = parameters_of(kind, 70, 20, torch.float32), torch.randn(6, 20)
    clean = KINDS[kind][0](x, *parameters)
    for value in (float("nan"), float("inf")):
        spoiled = x.clone()
        spoiled[2, 5] = value
        y = KINDS[kind][0](spoiled, *parameters)
        assert not y[2].isfinite().any()
        assert torch.equal(y[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


@kinds
def test_results_are_the_same_every_time(kind: str) -> None:
    x, base, parameters, g, _, _ = problem(kind, 200, 97, torch.float32, 300)
    leaves = [t.requires_grad_() for t in (x, base, *parameters)]
    runs = []
    for _ in range(2):
        y = KINDS[kind][0](x, *parameters, base=base)
        runs.append((y, *torch.autograd.grad(y, leaves, g)))
    assert all(map(torch.equal, *runs))


class TestCommonNodes:
    """v[i] = u[j] is refused where Python may look at the numbers."""

    v, u = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 3.0])
    G, H = torch.ones(1, 3), torch.ones(1, 2)

    def test_the_refusal_names_both_and_the_value(self) -> None:
        for v, u in ((self.v, self.u), (self.v.bfloat16(), self.u), (torch.nn.Parameter(self.v), self.u.double())):
            with pytest.raises(ValueError, match=r"^v and u must have no value in common, got v\[2\] = u\[1\] = 3.0$"):
                functional.cauchy_like_linear(torch.ones(2), v, u, self.G, self.H)

    def test_nodes_apart_in_their_own_type_stay_apart_under_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = functional.cauchy_like_linear(torch.ones(2), self.v + 1e-4, self.u, self.G, self.H)
        assert y.isfinite().all()

    def test_nan_is_equal_to_nothing(self) -> None:
        nan = torch.full((3,), float("nan"))
        assert functional.cauchy_like_linear(torch.ones(2), nan, nan[:2], self.G, self.H).isnan().all()

    def test_compiled_and_transformed_calls_give_infinities(self) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(functional.cauchy_like_linear, fullgraph=True, backend="aot_eager")
        assert not compiled(torch.ones(2), self.v, self.u, self.G, self.H)[2].isfinite()
        mapped = vmap(functional.cauchy_like_linear, in_dims=(0, None, None, None, None))
        assert not mapped(torch.ones(4, 2), self.v, self.u, self.G, self.H)[:, 2].isfinite().any()

    def test_meta_and_fake_tensors_have_no_numbers_to_look_at(self) -> None:
        tensors = [t.to("meta") for t in (torch.ones(2), self.v, self.u, self.G, self.H)]
        assert functional.cauchy_like_linear(*tensors).shape == (3,)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in (torch.ones(2), self.v, self.u, self.G, self.H)]
            assert functional.cauchy_like_linear(*fake).shape == (3,)


M, N, TOKENS = 4, 5, 3


def inputs_of(kind: str, requires_grad: bool = False) -> tuple[Tensor, ...]:
    """x, base and the parameters, in float64."""
    tensors = torch.randn(TOKENS, N).double(), torch.randn(TOKENS, M).double(), *parameters_of(kind, M, N)
    return tuple((t * 0.8).requires_grad_(requires_grad) for t in tensors)


def function_of(kind: str) -> Callable[..., Tensor]:
    return lambda x, base, *parameters: KINDS[kind][0](x, *parameters, base=base, scale=0.7)


@kinds
def test_first_derivatives_are_right_in_reverse_forward_and_batched_mode(kind: str) -> None:
    assert gradcheck(
        function_of(kind),
        inputs_of(kind, requires_grad=True),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@kinds
def test_second_derivatives_are_right_in_reverse_and_forward_over_reverse_mode(kind: str) -> None:
    assert gradgradcheck(function_of(kind), inputs_of(kind, requires_grad=True), check_fwd_over_rev=True)


@kinds
def test_derivatives_are_right_when_one_input_alone_asks_for_them(kind: str) -> None:
    for position in range(len(inputs_of(kind))):
        alone = [t.requires_grad_(index == position) for index, t in enumerate(inputs_of(kind))]
        assert gradcheck(function_of(kind), alone, check_forward_ad=True)
        assert gradgradcheck(function_of(kind), alone)


@kinds
def test_third_derivatives_are_right(kind: str) -> None:
    function, inputs = function_of(kind), inputs_of(kind, requires_grad=True)
    v = inputs[2]

    def second(v: Tensor) -> Tensor:
        loss = function(*inputs[:2], v, *inputs[3:]).square().sum()
        (first,) = torch.autograd.grad(loss, v, create_graph=True)
        return torch.autograd.grad(first.sum(), v, create_graph=True)[0]

    assert gradcheck(second, v)


@kinds
def test_first_and_higher_order_paths_give_the_same_gradients(kind: str) -> None:
    inputs = inputs_of(kind, requires_grad=True)
    y = function_of(kind)(*inputs).square().sum()
    lean = torch.autograd.grad(y, inputs, retain_graph=True)
    right = torch.autograd.grad(y, inputs, create_graph=True)
    for a, b in zip(lean, right, strict=True):
        assert not a.requires_grad
        assert torch.allclose(a, b, rtol=1e-12)


@kinds
def test_vmap_over_any_subset_of_inputs_is_a_loop(kind: str) -> None:
    function, inputs = function_of(kind), inputs_of(kind)
    for subset in range(1, 2 ** len(inputs)):
        dims = tuple(index % 2 if subset >> index & 1 else None for index in range(len(inputs)))
        dims = tuple(0 if dim and t.dim() == 1 else dim for dim, t in zip(dims, inputs, strict=True))
        stacked = [t if d is None else torch.stack([t, 0.5 * t, 1.1 * t], d) for t, d in zip(inputs, dims, strict=True)]
        mapped = vmap(function, in_dims=dims)(*stacked)
        for index in range(3):
            one = (t if d is None else t.select(d, index) for t, d in zip(stacked, dims, strict=True))
            assert torch.allclose(mapped[index], function(*one), rtol=1e-12)


@kinds
def test_vmap_of_grad_gives_the_gradient_of_each_sample(kind: str) -> None:
    function, inputs = function_of(kind), inputs_of(kind)
    positions = tuple(range(len(inputs)))

    def loss(*tensors: Tensor) -> Tensor:
        return function(*tensors).square().sum()

    stacked = [torch.stack([t, 0.5 * t]) for t in inputs]
    per_sample = vmap(grad(loss, argnums=positions))(*stacked)
    for index in range(2):
        leaves = [t[index].clone().requires_grad_() for t in stacked]
        for a, b in zip(per_sample, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            assert torch.allclose(a[index], b, rtol=1e-12)


@kinds
def test_jacobians_of_both_modes_and_hessian_agree(kind: str) -> None:
    function, inputs = function_of(kind), inputs_of(kind)
    for position in range(len(inputs)):

        def of_one(t: Tensor, position: int = position) -> Tensor:
            return function(*inputs[:position], t, *inputs[position + 1 :]).flatten()

        def loss(t: Tensor, of_one: Callable = of_one) -> Tensor:
            return of_one(t).square().sum()

        assert torch.allclose(jacrev(of_one)(inputs[position]), jacfwd(of_one)(inputs[position]))
        assert torch.allclose(hessian(loss)(inputs[position]), jacrev(jacrev(loss))(inputs[position]))


@kinds
def test_forward_mode_works_under_no_grad(kind: str) -> None:
    function, inputs, tangents = function_of(kind), inputs_of(kind), inputs_of(kind)
    _, expected = jvp(function, inputs, tangents)
    with torch.no_grad(), forward_ad.dual_level():
        result = function(*map(forward_ad.make_dual, inputs, tangents))
        assert torch.allclose(forward_ad.unpack_dual(result).tangent, expected)


@kinds
def test_operators_pass_opcheck(kind: str) -> None:
    x, base, *parameters = inputs_of(kind)
    with warnings.catch_warnings():  # the operators themselves are not differentiable, and opcheck tries
        warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")
        for start in (base, None):
            opcheck(torch.ops.surm_kernels.generated.default, (x, parameters, start, kind, 0.7))
        for needed in ((True, True), (True, False), (False, True)):
            arguments = (base, x, parameters, kind, 0.7, *needed)
            opcheck(torch.ops.surm_kernels.generated_backward.default, arguments)


@kinds
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
def test_compiles_without_graph_breaks(kind: str, dynamic: bool, gradients: bool) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def model(x: Tensor, base: Tensor, *parameters: Tensor) -> Tensor:
        return function_of(kind)(x.sin(), base, *(2 * p / 2 for p in parameters)).cos()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=counter)
    for m, n, tokens in ((4, 5, 7), (7, 6, 8))[: 1 + dynamic]:  # and rank 3: no two sizes alike
        tensors = [torch.randn(tokens, size).double() for size in (n, m)]
        tensors = [t.requires_grad_(gradients) for t in (*tensors, *parameters_of(kind, m, n))]
        got, wanted = compiled(*tensors), model(*tensors)
        assert torch.allclose(got, wanted)
        if gradients:
            for a, b in zip(*(torch.autograd.grad(y.square().sum(), tensors) for y in (got, wanted)), strict=True):
                assert torch.allclose(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_same_tensor_in_every_place_gets_the_sum_of_its_gradients(compiled: bool) -> None:
    torch._dynamo.reset()

    def everywhere(p: Tensor) -> Tensor:
        return functional.vandermonde_like_linear(p, p, p[None], p[None], base=p, scale=0.5)

    def twice(p: Tensor) -> Tensor:
        return functional.vandermonde_linear(p, p, base=p)

    for function in (everywhere, twice):
        called = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
        assert gradcheck(called, torch.rand(4).double().requires_grad_())
        if not compiled:
            assert gradgradcheck(called, torch.rand(4).double().requires_grad_())


@kinds
def test_exports_with_a_dynamic_number_of_tokens(kind: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, base: Tensor, parameters: list[Tensor]) -> Tensor:
            return function_of(kind)(x, base, *parameters)

    x, base, *parameters = inputs_of(kind)
    tokens = torch.export.Dim("tokens", min=2)
    shapes = ({0: tokens}, None, [None] * len(parameters))
    program = torch.export.export(Model(), (x, base[0], parameters), dynamic_shapes=shapes)
    x = torch.randn(9, N).double()
    assert torch.allclose(program.module()(x, base[0], parameters), function_of(kind)(x, base[0], *parameters))


@kinds
def test_meta_tensors_have_the_shape_of_real_results(kind: str) -> None:
    real, meta = (function_of(kind)(*(t.to(device) for t in inputs_of(kind))) for device in ("cpu", "meta"))
    assert (real.shape, real.stride(), real.dtype) == (meta.shape, meta.stride(), meta.dtype)
    assert meta.is_meta
    leaves = [t.to("meta").requires_grad_() for t in inputs_of(kind)]
    for leaf, gradient in zip(leaves, torch.autograd.grad(function_of(kind)(*leaves).sum(), leaves), strict=True):
        assert gradient.shape == leaf.shape


@kinds
def test_autocast_does_not_reach_the_arithmetic_inside(kind: str) -> None:
    x, base, *parameters = (t.bfloat16().float().requires_grad_() for t in inputs_of(kind))
    exact = base.double() + 0.7 * x.double() @ matrix_of(kind, N, tuple(parameters)).T
    with torch.autocast("cpu", torch.bfloat16):
        y = function_of(kind)(x, base, *parameters)
        _, tangent = jvp(lambda x: function_of(kind)(x, base, *parameters), (x,), (x,))
    assert y.dtype == tangent.dtype == torch.bfloat16
    oracle.assert_close(y.detach(), exact.detach())
    oracle.assert_close(tangent.detach(), (exact - base).detach())
    for a in torch.autograd.grad(y.float().sum(), (x, base, *parameters)):
        assert a.dtype == torch.float32


def test_per_sample_gradients_and_checkpointing_work_in_a_module() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = torch.nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.vandermonde_linear(x, self.v)

    model, x = Model(), torch.randn(3, 5)
    per_sample = vmap(grad(lambda p, x: functional_call(model, p, x).square().sum()), in_dims=(None, 0))
    (gradient,) = torch.autograd.grad(model(x).square().sum(), model.v)
    assert torch.allclose(per_sample({"v": model.v}, x)["v"].sum(0), gradient, atol=1e-5)
    y = checkpoint(model, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.square().sum(), model.v)[0], gradient)


@kinds
def test_calls_that_need_no_derivative_record_none(kind: str) -> None:
    inputs = inputs_of(kind, requires_grad=True)
    with torch.no_grad():
        assert not function_of(kind)(*inputs).requires_grad
    with torch.inference_mode():
        assert function_of(kind)(*inputs).is_inference()
    assert function_of(kind)(*inputs).requires_grad
