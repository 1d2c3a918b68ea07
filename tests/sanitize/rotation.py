"""A plugin of pytest that keeps the tests whose turn it is: SURM_TURN=0/3 means the first, the fourth, …"""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turn, turns = map(int, os.environ["SURM_TURN"].split("/"))
    items[:] = items[turn::turns]
