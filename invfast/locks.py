"""What threads share: values made once a process, and locks of things that only one of them may use at a time."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_locks: dict[int, threading.RLock] = {}
_any = threading.RLock()


def once(function: Callable[P, T]) -> Callable[P, T]:
    """`functools.cache` that makes a value once: threads that ask at the same time wait for the first one's.

    For what must not happen twice or side by side: registering operators, an import that needs a changed `sys.modules`.
    What raises is tried again by the next caller.
    """
    lock, kept = threading.RLock(), functools.cache(function)

    @functools.wraps(function)
    def locked(*given: P.args, **named: P.kwargs) -> T:
        with lock:
            return kept(*given, **named)

    locked.cache_clear = kept.cache_clear
    return locked


def lock_of(thing: Any) -> threading.RLock:
    """The lock of an object, one for its life, for who changes the object while using it; the caller's need none."""
    with _any:
        if id(thing) not in _locks:
            weakref.finalize(thing, _locks.pop, id(thing), None)
            _locks[id(thing)] = threading.RLock()
        return _locks[id(thing)]
