"""Combinations in turns, where all with all would prove little more and take many times as long."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch


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


def cases(names: str, combinations: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrises a test by combinations of values, or by the values of one name."""
    return pytest.mark.parametrize(names, combinations, ids=_name_of)


def _name_of(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "x".join(map(str, value)) if type(value) is tuple else str(value)
