"""Memory stays flat over steps of training and layers made and dropped, and what grows is seen."""

import mmap

import pytest
import torch

from tests import soak


@pytest.mark.parametrize(("work", "times"), [(soak.Training, 200), (soak.Layers, 210)])
def test_memory_stays_flat(work, times: int, threads) -> None:
    threads(1)
    more = soak.growth(work(), times)
    assert more.tensors <= 0
    assert more.resident <= soak.RESIDENT


def test_tensors_that_stay_are_seen() -> None:
    kept = []
    assert soak.growth(lambda: kept.append(torch.ones(1)), 20).tensors == 18


def test_memory_that_stays_is_seen() -> None:
    kept = []

    def hold() -> None:  # pages of its own: the heap may have a lot at hand from what earlier tests freed
        kept.append(mmap.mmap(-1, 1 << 20))
        kept[-1].write(b"x" * (1 << 20))

    assert soak.growth(hold, 20).resident > soak.RESIDENT
