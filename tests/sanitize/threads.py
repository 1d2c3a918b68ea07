"""Calls on several threads of Python at the same time."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

Result = TypeVar("Result")
THREADS, LIMIT = 8, 120.0  # seconds that threads which wait for each other are given


def at_once(call: Callable[[int], Result], threads: int = THREADS) -> list[Result]:
    """What `call(index)` gives on each of the threads, which begin together.

    A new thread records and has no autocast, whatever the calling one does; it computes with as many threads, on which
    the last bits of a matrix product depend. Raises what a call raised, and TimeoutError where one does not end.
    """
    number = torch.get_num_threads()
    start = threading.Barrier(threads)
    futures: list[Future[Result]] = [Future() for _ in range(threads)]

    def run(index: int) -> None:
        torch.set_num_threads(number)  # OpenMP has it for each thread that calls
        start.wait()
        try:
            futures[index].set_result(call(index))
        except BaseException as error:
            futures[index].set_exception(error)

    for index in range(threads):
        threading.Thread(target=run, args=(index,), daemon=True).start()
    return [future.result(LIMIT) for future in futures]
