"""Locks among threads that a forked process gets anew: the thread that held one is not there to give it back."""

import os
import threading
from types import TracebackType
from weakref import WeakSet


class Lock:
    """threading.Lock, free in a process that has just been forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        self._lock = threading.Lock()


_all: WeakSet[Lock] = WeakSet()


def _renew_all() -> None:
    for lock in _all:
        lock.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_all)
