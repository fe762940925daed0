"""A pipeline's own state while calls run on it: shared by those that overlap, put back when the last one ends."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from invfast.denoiser.clone import is_hooked
from invfast.locks import lock_of

NAMES = ("_interrupt", "_progress_bar_config")
_MISSING = object()


@dataclass(eq=False)
class Call:
    """One call on a pipeline."""

    pipe: Any
    thread: int = field(default_factory=threading.get_ident)
    stopped: bool = False
    """Whether the pipeline's flag stopped it, though a later call has lowered the flag since."""

    @property
    def interrupted(self) -> bool:
        with _lock:
            return self.stopped or bool(self.pipe._interrupt)


@dataclass
class _Shared:
    before: dict[str, Any]
    calls: list[Call] = field(default_factory=list)


_lock = threading.Lock()
_open: dict[int, _Shared] = {}
"""By the pipeline's id; the calls hold the pipelines."""


@contextmanager
def session(pipe: Any, still: Collection[torch.nn.Module] = ()) -> Iterator[Call]:
    """Leaves a pipeline as it was, interrupt flag, progress-bar settings and offloading, once its last call ended.

    The flag stops every call that is under way on the pipeline, whichever thread's, and none that begins later. Where
    hooks move or cast the weights, calls wait for one another; `still` are parts that are known to have no such hooks.
    """
    with exclusive(pipe, still):
        call = _enter(pipe)
        try:
            yield call
        finally:
            if _leave(call):
                _offload(pipe)


def _offload(pipe: Any) -> None:
    """As a pipeline's own call ends; where nothing is offloaded that call would leave marks on its networks."""
    if getattr(pipe, "_all_hooks", None):
        pipe.maybe_free_model_hooks()


def _enter(pipe: Any) -> Call:
    call = Call(pipe)
    with _lock:
        if id(pipe) not in _open:
            _open[id(pipe)] = _Shared({name: pipe.__dict__.get(name, _MISSING) for name in NAMES})
        calls = _open[id(pipe)].calls
        _lower(pipe, calls)
        calls.append(call)
    return call


def _leave(call: Call) -> bool:
    """Whether it was the pipeline's last."""
    pipe = call.pipe
    with _lock:
        shared = _open[id(pipe)]
        shared.calls.remove(call)
        if not shared.calls:
            del _open[id(pipe)]
            for name, value in shared.before.items():
                pipe.__dict__.pop(name, None) if value is _MISSING else setattr(pipe, name, value)
            return True
        if any(each.thread == call.thread for each in shared.calls):  # inside a callback of another: its own flag
            _lower(pipe, [each for each in shared.calls if each.thread != call.thread])
    return False


def _lower(pipe: Any, calls: list[Call]) -> None:
    """Takes the pipeline's flag down, as diffusers does at the start of a call; calls that it was for stay stopped."""
    for call in calls:
        call.stopped |= bool(pipe._interrupt)
    pipe._interrupt = False


@contextmanager
def exclusive(pipe: Any, still: Collection[torch.nn.Module] = ()) -> Iterator[None]:
    """Holds the locks of those parts of a pipeline that hooks move or cast, always in one order."""
    parts = {id(part): part for part in pipe.components.values() if isinstance(part, torch.nn.Module)}
    known = {id(each) for part in still for each in (part, *part.children())}  # one may be made of several
    # Two uses at once would take weights from each other.
    hooked = [part for key, part in parts.items() if key not in known and any(map(is_hooked, part.modules()))]
    with ExitStack() as stack:
        for part in sorted(hooked, key=id):
            stack.enter_context(lock_of(part))
        yield
