"""Several threads at once, for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

THREADS = 4
WAIT = 60
"""Seconds after which a test that waits for another thread has failed."""


def together(*work: Callable[[], object]) -> list:
    """Runs all of it at once, a thread each, from one moment on; their results in order, or the first error."""
    start = threading.Barrier(len(work))

    def begin(each: Callable[[], object]) -> object:
        start.wait(WAIT)
        return each()

    with ThreadPoolExecutor(len(work)) as pool:
        return [each.result() for each in [pool.submit(begin, each) for each in work]]


class Meeting:
    """A place where threads wait for one another, for a moment only: those that never come are not there at once."""

    def __init__(self, count: int, seconds: float = 0.2) -> None:
        self.seconds, self.barrier = seconds, threading.Barrier(count)
        self.most = self._here = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._here += 1
            self.most = max(self.most, self._here)
        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(self.seconds)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._here -= 1
