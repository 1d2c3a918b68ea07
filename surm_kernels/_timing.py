"""Timing calls: in turns, repeated within a sample where they are short, until enough is known.

Every repeat takes each call once, in an order that rotates, so that a disturbance of the machine meets all alike.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How long to measure: repeats until `seconds` are spent, at least `fewest` and at most `most`."""

    most: int
    fewest: int
    seconds: float
    warm_up: int = 2
    long: float = math.inf  # seconds of a call from which on it is warm after one
    sample_seconds: float = 2e-3  # shorter calls are repeated within a sample
    most_calls: int = 2000


Clock = Callable[[Callable[[], object], int], float]  # the seconds a call takes, over a number of calls


def wall_clock(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def samples(calls: Sequence[Callable[[], object]], effort: Effort, clock: Clock = wall_clock) -> list[list[float]]:
    """The seconds of each call in every repeat; a repeat takes all in turns, in an order that rotates."""
    numbers = [_calls_a_sample(call, effort, clock) for call in calls]
    taken: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for repeat in range(effort.most):
        if repeat >= effort.fewest and time.perf_counter() - start > effort.seconds:
            break
        for turn in range(len(calls)):
            index = (repeat + turn) % len(calls)
            taken[index].append(clock(calls[index], numbers[index]))
    return taken


def _calls_a_sample(call: Callable[[], object], effort: Effort, clock: Clock) -> int:
    """Warms up, and finds how many calls make a sample long enough for the clock."""
    seconds = clock(call, 1)
    for _ in range(effort.warm_up - 1 if seconds < effort.long else 0):
        seconds = min(seconds, clock(call, 1))
    return min(effort.most_calls, max(1, math.ceil(effort.sample_seconds / max(seconds, 1e-9))))
