"""Work done ahead in threads: results in order, never more than a few of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(function: Callable[[Given], Made], given: Iterable[Given], most: int, threads: int) -> Iterator[Made]:
    """`map`, up to `most` results ahead of what was taken; what was not begun when the caller leaves is dropped."""
    every = iter(given)
    pool = ThreadPoolExecutor(threads, "invfast-ahead")
    try:
        waiting: deque[Future[Made]] = deque(pool.submit(function, one) for one in islice(every, most))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(function, one) for one in islice(every, 1))
            yield made
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
