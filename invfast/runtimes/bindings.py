"""What serves one call of a network at a time, an infer request, IO binding or context: one for each caller."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Bindings(Generic[T]):
    """As many as there were calls at once; whoever comes takes an idle one, or makes one.

    Args:
        make: makes one; called by one thread at a time, the first time here, so that what cannot be made says so now.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._idle: deque[T] = deque([make()])

    @contextmanager
    def one(self) -> Iterator[T]:
        """One for the time of a call. Results that lie in it must be copied before it ends."""
        taken = self.take()
        try:
            yield taken
        finally:
            self.give(taken)

    def take(self) -> T:
        """One for as long as it is not given back."""
        with self._lock:
            return self._idle.pop() if self._idle else self._make()

    def give(self, taken: T) -> None:
        """Takes one back, for the next caller."""
        self._idle.append(taken)
