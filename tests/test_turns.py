"""What the tests rely on where they take combinations in turns: that every pair of values occurs."""

from itertools import combinations, product

import pytest

from tests.turns import in_turns


@pytest.mark.parametrize("sizes", [(1, 1), (4, 4, 4), (17, 4, 4), (13, 4, 2), (5, 4, 2, 2), (6, 9, 3, 2), (3, 4, 2)])
def test_every_pair_of_values_of_any_two_occurs(sizes: tuple[int, ...]) -> None:
    found = in_turns(*(range(size) for size in sizes))
    assert len(found) == sizes[0] * sizes[1]
    for one, other in combinations(range(len(sizes)), 2):
        pairs = {(values[one], values[other]) for values in found}
        assert pairs == set(product(range(sizes[one]), range(sizes[other])))
