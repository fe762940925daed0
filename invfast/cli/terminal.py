"""What a command says beside its result: on stderr as loud as was asked, and into a log file, with the time.

rich is imported where something is printed: a help text comes sooner without it.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""
OLD_NEWS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
"""What libraries tell whoever calls them, which is not who runs a command."""
CALL_HANDLERS = logging.Logger.callHandlers
OTHERS = ("diffusers", "transformers")
"""Libraries whose messages do not reach the root logger."""
OF_THE_MACHINE = ("matplotlib",)
"""Libraries whose warnings are never of a run: where they keep their fonts."""


class _Voice:
    """How loud this command is: -1 errors alone, 0 also warnings and notes, 1 also what other libraries say."""

    level = 0
    file: logging.Handler | None = None
    loading = False


@functools.cache
def console() -> Console:
    """stderr."""
    from rich.console import Console

    return Console(stderr=True)


def note(text: str, style: str | None = None, *, level: int = logging.INFO, shown: bool = True) -> None:
    """A line on stderr, but under --quiet, and in the log file; `shown` False is in the file alone."""
    if shown and (_Voice.level >= 0 or level >= logging.ERROR):
        console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
    if _Voice.file is not None:
        _Voice.file.handle(logging.LogRecord("invfast", level, __file__, 0, text, None, None))


def warning(text: str) -> None:
    """A line that a reader should know."""
    note(f"warning: {text}", "yellow", level=logging.WARNING)


def error(text: str) -> None:
    """Why it could not be done; also under --quiet."""
    note(text, "red", level=logging.ERROR)


@contextmanager
def spoken(level: int, log_file: Path | None) -> Iterator[None]:
    """Sets how loud a command is while it runs; until `loaded` is called other libraries are silent.

    Args:
        level: see _Voice.
        log_file: what is said is appended to it, whatever the level, and what other libraries say.

    Raises:
        OSError: the log file cannot be written to.
    """
    root, own = logging.getLogger(), logging.getLogger("invfast")
    on_stderr = logging.StreamHandler(sys.stderr)
    on_stderr.setLevel({-1: logging.ERROR, 0: logging.WARNING}.get(level, logging.INFO))
    handlers: list[logging.Handler] = [on_stderr]
    _Voice.level, _Voice.file, _Voice.loading = level, None, level < 1
    if log_file is not None:
        _Voice.file = _opened(log_file)
        handlers.append(_Voice.file)
    before = own.level
    if level > 0 or log_file is not None:
        own.setLevel(logging.INFO)
    try:
        for handler in handlers:
            root.addHandler(handler)
        for name in OTHERS if _Voice.file else ():
            logging.getLogger(name).addHandler(_Voice.file)
        logging.Logger.callHandlers = _called  # torch, diffusers and transformers bring handlers of their own
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            yield
    finally:
        loaded()
        logging.Logger.callHandlers = CALL_HANDLERS
        own.setLevel(before)
        for logger in (root, *map(logging.getLogger, OTHERS)):
            for handler in handlers:
                logger.removeHandler(handler)
        if _Voice.file is not None:
            _Voice.file.close()
        _Voice.level, _Voice.file = 0, None


def loaded() -> None:
    """From here on other libraries speak of this run, not of what they found while they were imported."""
    _Voice.loading = False


def status(text: str) -> Any:
    """A context in which a terminal shows what is being done."""
    return console().status(text) if console().is_terminal and _Voice.level >= 0 else nullcontext()


@contextmanager
def progress(pipe: Any, what: str, passes: int = 1) -> Iterator[None]:
    """Shows how far a pipeline's passes over the grid are, in place of its own bars.

    One bar on a terminal, else a line every EVERY seconds.

    Args:
        pipe: loaded by this command, for its `progress_bar` is replaced.
        what: is being done, "inverting".
        passes: of the whole command, as far as it is known.
    """
    on_terminal = console().is_terminal and _Voice.level >= 0
    if not on_terminal:
        pipe.progress_bar = _Passes(what, passes).begun
        yield
        return
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as bar:
        pipe.progress_bar = _Passes(what, passes, bar).begun
        yield


class _Passes:
    """Passes over the grid, one after the other, as one count."""

    def __init__(self, what: str, passes: int, bar: Any = None) -> None:
        self.what, self.passes, self.bar = what, passes, bar
        self.begun_at = self.said_at = time.monotonic()
        self.number = self.steps = self.of = 0
        self.task = None if bar is None else bar.add_task(what, total=passes)

    @contextmanager
    def begun(self, iterable: Any = None, total: int | None = None) -> Iterator[_Passes]:
        """One pass, as the pipeline's own `progress_bar` is asked for one."""
        self.steps, self.of = 0, max(1, total or 1)
        self.passes = max(self.passes, self.number + 1)  # null-text's second pass is not foreseen
        yield self
        self.number += 1

    def update(self, n: int = 1) -> None:
        """That many steps are taken."""
        self.steps += n
        done = self.number + min(1.0, self.steps / self.of)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=self.passes)
        now = time.monotonic()
        if now - self.said_at >= EVERY:
            self.said_at = now
            left = (now - self.begun_at) * (self.passes / done - 1)
            where = f"step {self.steps} of {self.of}" + (
                f", pass {self.number + 1} of {self.passes}" if self.passes > 1 else ""
            )
            note(f"{self.what}: {where}, {now - self.begun_at:.0f} s, {left:.0f} s left", shown=self.bar is None)


def _opened(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise OSError(f"log file {str(path)!r} cannot be written to: {error.strerror}; name another") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _called(logger: logging.Logger, record: logging.LogRecord) -> None:
    """`Logger.callHandlers`, but for what other libraries say while they are imported and load a model."""
    library = record.name.partition(".")[0]
    hidden = _Voice.loading or (_Voice.level < 1 and library in OF_THE_MACHINE)
    if library == "invfast" or not hidden or record.levelno > logging.WARNING:
        CALL_HANDLERS(logger, record)
    elif _Voice.file is not None:
        _Voice.file.handle(record)


def _warned(message: Any, category: type[Warning], *_: Any) -> None:
    """A warning of Python's: but those of other libraries' imports, and those for who calls them."""
    hidden = _Voice.level < 1 and (_Voice.loading or issubclass(category, OLD_NEWS))
    note(f"warning: {message}", "yellow", level=logging.WARNING, shown=not hidden)
