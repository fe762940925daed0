"""What the page computes: one job at a time, each of one browser tab, which can see how far it is and cancel it.

A pipeline is shared by all, and asks for its progress bar before every pass: `passing`, put there once, finds the job
of its own thread. So every pass is seen and can be stopped, those of a method's refinement among them, which call
nobody back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Cancelled(Exception):  # noqa: N818 (no error)
    """Somebody has lost interest in a job."""


class Job:
    """One computation.

    Args:
        doing: what, for people.
    """

    def __init__(self, doing: str = "") -> None:
        self.doing = doing
        self.report: Callable[[int, int, str], None] = lambda step, steps, doing: None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """It ends at its next step."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises Cancelled where it is."""
        if self._cancelled.is_set():
            raise Cancelled


_current: ContextVar[Job | None] = ContextVar("job", default=None)


def say(doing: str) -> None:
    """What the thread's job does from here on."""
    job = _current.get()
    if job is not None:
        job.check()
        job.doing = doing
        job.report(0, 1, doing)


@contextmanager
def passing(iterable: Any = None, total: int | None = None) -> Iterator[_Pass]:
    """In place of a pipeline's `progress_bar`: the thread's job hears of every step."""
    yield _Pass(_current.get() or Job(), total or 1)


class _Pass:
    def __init__(self, job: Job, steps: int) -> None:
        self.job, self.step, self.steps = job, 0, steps
        job.check()

    def update(self, n: int = 1) -> None:
        self.step += n
        self.job.check()
        self.job.report(self.step, self.steps, self.job.doing)


class Jobs:
    """The jobs of every session, by what they are for; a session is a browser tab, until it is closed or reloaded."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], Job] = {}
        self._changing, self._computing = threading.Lock(), threading.Lock()

    def announce(self, session: str, name: str) -> None:
        """A job that is to run, and may wait: from now on it can be cancelled. It replaces one that never ran."""
        with self._changing:
            self._jobs[session, name] = Job()

    def cancel(self, session: str, name: str | None = None) -> None:
        """Ends a session's job of this name, or all it has; another's go on."""
        with self._changing:
            for key, job in self._jobs.items():
                if key[0] == session and name in (None, key[1]):
                    job.cancel()

    @contextmanager
    def running(self, session: str, name: str, report: Callable[[int, int, str], None]) -> Iterator[Job]:
        """The session's job of this name, while no other runs.

        Args:
            session: of the browser tab.
            name: what it is for.
            report: called with steps taken, steps of the pass, and what is being done.

        Raises:
            Cancelled: it was, before or after it began.
        """
        with self._changing:
            job = self._jobs.setdefault((session, name), Job())
        job.report = report
        try:
            while not self._computing.acquire(timeout=0.1):
                job.check()
            try:
                token = _current.set(job)
                job.check()
                yield job
            finally:
                _current.reset(token)
                self._computing.release()
        finally:
            with self._changing:
                if self._jobs.get((session, name)) is job:
                    del self._jobs[session, name]
