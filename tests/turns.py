"""Combinations in turns, where all with all would prove little more and take many times as long."""

from collections.abc import Sequence
from typing import Any


def in_turns(first: Sequence[Any], second: Sequence[Any], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every pair of the first two, and with it one of each of the others, in turns.

    Every pair of any two occurs where the first two are at least as many as the others multiplied.
    """
    combinations = []
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            turn, step = [], 1
            for values in others:
                turn.append(values[(i // step + j // step) % len(values)])
                step *= len(values)
            combinations.append((a, b, *turn))
    return combinations
