"""What only a GPU shows: captured graphs, streams, waiting, a second device. benchmarks/gpu.sh has them first."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.nn import AdaptedLinear
from surm_kernels.ops import _cuda
from surm_kernels.structures import Circulant, Siva, Structure
from tests import adapted, oracle, updates
from tests.gpu import DEVICE, MISSING, moved
from tests.test_grid import SCALE
from tests.test_structure_gradients import tokens_of

if MISSING or DEVICE.type == "cpu":
    pytest.skip(MISSING or "these tests are about what a GPU alone has", allow_module_level=True)

wide_or_half = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@wide_or_half
@adapted.squares
def test_a_captured_graph_replays_on_new_values(structure: Structure, dtype: torch.dtype) -> None:
    g, x = moved(*tokens_of(structure, dtype, 130))
    parameters = moved(*updates.parameters_of(structure, dtype))

    def step() -> list[Tensor]:
        gradients = structure.gradients(g, x, *parameters, scale=SCALE)
        return [structure.linear(x, *parameters), *(one for one in gradients if one is not None)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # plans are made, and kernels loaded, before a capture
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        new_g, new_x = moved(*tokens_of(structure, dtype, 130))
        g.copy_(new_g)
        x.copy_(new_x)
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            assert torch.equal(got, wanted)


@adapted.squares
def test_a_stream_of_its_own_orders_what_runs_on_it(structure: Structure) -> None:
    g, x = moved(*tokens_of(structure, torch.float32, 1000))
    parameters = moved(*updates.parameters_of(structure, torch.float32))
    wanted = structure.gradients(g, x, *parameters)
    product = structure.linear(x, *parameters)
    late = torch.full_like(x, torch.nan)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # the input comes late: whoever does not wait for the stream reads NaN
        late.copy_(x)
        got, y = structure.gradients(g, late, *parameters), structure.linear(late, *parameters)
    side.synchronize()
    assert torch.equal(y, product)
    for a, b in zip(got, wanted, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_a_first_call_may_be_in_a_captured_graph() -> None:
    size = 2080  # of no other test; its tables, and maybe the kernels, are new to the device
    c, x = torch.randn(size, device=DEVICE), torch.randn(130, size, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.surm_kernels.grid(x[None], c[None, None, None], None, CIRCULANT, size, 1.0, False)
    graph.replay()
    oracle.assert_close(y[0].cpu(), x.double().cpu() @ oracle.f_circulant(c.cpu(), 1).T)


@pytest.mark.parametrize("structure", [Circulant(768, 768), Siva(96, 96, 40)], ids=["circulant", "siva"])
def test_a_layer_in_training_has_the_weight_of_the_cpu_to_the_bit_and_waits_for_nothing_under_auto(
    structure: Structure,
) -> None:
    if not _cuda.merges(torch.cuda.current_device()):
        pytest.skip("CUDA C++ does not serve")
    layer = adapted.make(structure, "merged", torch.bfloat16, bias=False)
    rows = torch.eye(structure.in_features, dtype=torch.bfloat16)  # sums of zeros are exact
    weight = layer(rows).detach()
    layer = layer.to(DEVICE)
    found = layer(rows.to(DEVICE)).detach().cpu()
    if isinstance(structure, Siva):  # whose product is the platform's
        assert oracle.error(found, weight.double()) < 2 * torch.finfo(torch.bfloat16).eps
    else:
        assert torch.equal(found, weight)
    layer.strategy = "auto"
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(torch.ones(8192, structure.in_features, dtype=torch.bfloat16, device=DEVICE)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@wide_or_half
def test_streams_may_share_a_layer_with_parameters_of_their_own(dtype: torch.dtype) -> None:
    layer = adapted.make(Circulant(1024, 1024), "merged", dtype).to(DEVICE).requires_grad_(False)
    x = torch.randn(512, 1024, device=DEVICE).to(dtype)
    parameters = [{"c": torch.randn(1024, device=DEVICE).to(dtype)} for _ in range(2)]
    wanted = [functional_call(layer, each, (x,)) for each in parameters]
    streams = [torch.cuda.Stream() for _ in parameters]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[], []]
    for _ in range(20):
        for each, stream, results in zip(parameters, streams, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(functional_call(layer, each, (x,)))
    torch.cuda.synchronize()
    for results, exact in zip(found, wanted, strict=True):
        assert all(torch.equal(result, exact) for result in results)


@adapted.squares
def test_nothing_waits_for_the_device(structure: Structure) -> None:
    g, x = moved(*tokens_of(structure, torch.bfloat16, 130))
    parameters = moved(*updates.parameters_of(structure, torch.bfloat16))
    structure.linear(x, *parameters)
    structure.gradients(g, x, *parameters)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        structure.linear(x, *parameters)
        structure.gradients(g, x, *parameters)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("name", ("circulant", "toeplitz", "toeplitz-like", "kronecker", "siva", "vandermonde"))
def test_another_device_than_the_current_one_serves(name: str) -> None:
    structure = updates.SQUARES[name]
    x = torch.randn(17, structure.in_features)
    parameters = updates.parameters_of(structure, torch.float32)
    exact = x.double() @ updates.matrix(structure, parameters, torch.float32).T
    with torch.cuda.device(0):
        got = structure.linear(x.to("cuda:1"), *(parameter.to("cuda:1") for parameter in parameters))
    assert got.device == torch.device("cuda:1")
    oracle.assert_close(got.cpu(), exact)


def test_a_network_trains_under_autocast() -> None:
    structure = updates.SQUARES["circulant"]
    base = nn.Linear(structure.in_features, structure.out_features)
    layer = AdaptedLinear(base, structure, strategy="direct").to(DEVICE)
    x = torch.randn(64, structure.in_features, device=DEVICE)
    target = torch.randn(64, structure.out_features, device=DEVICE)
    optimiser = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(20):
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.mse_loss(layer(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
