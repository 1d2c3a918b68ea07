"""Threads that share a layer, as those of an inference server do: each call is W0 + W, and so is every later one."""

import copy
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from surm_kernels._kept import MergedWeight
from surm_kernels._locks import Lock
from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, LowRank, Structure
from tests import oracle
from tests.adapted import draw, exact_output, make, tokens_of


def at_once(*calls: Callable[[], Tensor]) -> list[Tensor]:
    """What each call gives, in threads that start together."""
    results: list[Tensor | BaseException | None] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(index: int) -> None:
        start.wait()
        try:
            with torch.no_grad():
                results[index] = calls[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def siva() -> AdaptedLinear:
    base = nn.Linear(256, 256)
    basis = torch.linalg.qr(torch.randn(256, 256))[0][:, :128]
    structure = AdaptedLinear.siva(base, k=128, basis="random").structure
    return AdaptedLinear(base, structure, constants={"U": basis, "V": basis})


LAYERS: dict[str, Callable[[], AdaptedLinear]] = {
    "siva": siva,
    "low rank": lambda: make(LowRank(256, 256, 32), "auto", torch.float32),
    "kept spectra": lambda: make(Circulant(256, 256), "direct", torch.float32),
}


@pytest.mark.parametrize("name", LAYERS)
def test_threads_after_a_change_all_get_the_present_weight(name: str) -> None:
    layer = LAYERS[name]().eval()
    x, _ = tokens_of(layer, 8, dtype=torch.float32)
    with torch.no_grad():
        layer(x)
    for _ in range(8):
        other = copy.deepcopy(layer)
        draw(other)
        layer.load_state_dict(other.state_dict())
        exact = exact_output(layer, x).detach()
        for y in at_once(*[lambda: layer(x)] * 4):
            oracle.assert_close(y, exact)
    with torch.no_grad():
        oracle.assert_close(layer(x), exact)


@pytest.mark.parametrize("structure", [Circulant(192, 192), LowRank(192, 192, 8)], ids=repr)
def test_threads_of_different_types_do_not_take_turns_in_one_buffer(structure: Structure) -> None:
    layer = make(structure, "merged", torch.float32).eval()
    x, _ = tokens_of(layer, 40, dtype=torch.float32)

    def rounded() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.stack([layer(x) for _ in range(10)])

    def whole() -> Tensor:
        return torch.stack([layer(x) for _ in range(10)])

    for _ in range(4):
        draw(layer)
        exact = exact_output(layer, x).detach().expand(10, -1, -1)
        for y, dtype in zip(at_once(rounded, whole, rounded, whole), (torch.bfloat16, torch.float32) * 2, strict=True):
            assert y.dtype == dtype
            assert oracle.error(y, exact) < (1e-2 if dtype == torch.bfloat16 else oracle.FLOAT32_TOLERANCE)


def test_estimates_of_size_are_of_the_present_update_in_every_thread() -> None:
    layer = make(Circulant(96, 96), "auto", torch.bfloat16).eval()
    original = layer.c.detach().clone()
    for factor, chosen in ((1.0, "merged"), (1e-6, "direct")) * 4:
        layer.c.data.copy_(factor * original)
        calls = [lambda: torch.tensor(layer.chosen(1000, gradients=False) == "merged")] * 4
        assert all(bool(merged) == (chosen == "merged") for merged in at_once(*calls))


def test_a_merged_weight_that_is_in_use_is_not_written_to_and_its_memory_serves_again_after_that() -> None:
    structure, weight, merged = Circulant(12, 12), torch.randn(12, 12), MergedWeight()
    first, second, third = (torch.randn(12) for _ in range(3))

    def form(c: Tensor) -> object:
        return merged.of(structure, 1.0, torch.float32, weight, (c,))

    held = form(first)
    assert form(first) is held
    other = form(second)
    assert torch.equal(held.weight, weight + structure.dense(first))
    assert torch.equal(other.weight, weight + structure.dense(second))
    places = {held.weight.data_ptr(), other.weight.data_ptr()}
    assert len(places) == 2
    del held, other
    assert form(third).weight.data_ptr() in places


def test_training_forms_one_merged_weight_in_one_memory() -> None:
    layer = make(Circulant(64, 64), "merged", torch.float32)
    x, g = tokens_of(layer, 3, dtype=torch.float32)
    places = set()
    for _ in range(4):
        y = layer(x.requires_grad_())
        y.backward(g)
        places.add(layer._product._merged._merged.weight.data_ptr())
        layer.c.data.add_(1e-3)
    assert len(places) == 1


def test_a_merged_weight_whose_memory_serves_again_is_to_be_had_no_more() -> None:
    """Not even while its memory is given back: another thread's backward may be asking for it just then."""
    kept = MergedWeight()
    weight, values = torch.randn(8, 8), torch.ones(8)
    reference = weakref.ref(kept.of(Circulant(8, 8), 1.0, weight.dtype, weight, [values]))
    found = []

    class Watched(deque):
        def append(self, memory: Tensor) -> None:
            found.append(reference())
            super().append(memory)

    kept._merged._lent._spare = Watched()
    kept.of(Circulant(8, 8), 1.0, weight.dtype, weight, [2 * values])
    assert found == [None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    lock = Lock()
    with lock:
        child = os.fork()
        if child == 0:
            with lock:
                os._exit(7)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
