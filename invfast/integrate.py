"""The only loop over the grid: a stepper, a predictor, and what has to happen between two steps."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from invfast.schedule import Schedule

if TYPE_CHECKING:
    from invfast.executors import Executor
    from invfast.methods.base import State


EVERY = 8
"""Steps after which a device's sums are sent to the host: a copy and an event a step cost more than a replay."""


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to see or do between steps.

    Args:
        on_step: (steps taken so far, time, tensors) -> tensors of the state to replace, or None. It is given copies,
            ordinary tensors; what it edits in place counts as replaced.
        shown: names of what it is given.
        checked: (tensors, state) -> those that may replace the state's.
        progress: called after each step.
        interrupted: asked before each step; True ends the run where it stands.
        trajectory: keep the latents of every node.
    """

    on_step: Callable[[int, int | float, State], State | None] | None = None
    shown: Sequence[str] = ("latents",)
    checked: Callable[[State | None, State], State] = lambda new, state: new or {}
    progress: Callable[[], None] = lambda: None
    interrupted: Callable[[], bool] = lambda: False
    trajectory: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """State after the last step taken, how many there were, and what was recorded of them."""

    state: State
    steps_taken: int
    residual: torch.Tensor | None
    trajectory: torch.Tensor | None
    seconds: float


def integrate(take: Executor, state: State, schedule: Schedule, hooks: Hooks) -> Run:
    """Takes every step of an executor's stepper from a state: "latents" (B, C, h, w), and what else the method kept.

    Raises:
        FloatingPointError: a latent became non-finite; names step, t, image and dtype. On the CPU at the step itself;
            elsewhere as soon as the device has reported it, at the latest at the end.
    """
    begin, ordinary, stepper = time.perf_counter(), _ordinary(), take.stepper
    with torch.inference_mode():
        state = stepper.init(state)
        finite = _FiniteCheck(state["latents"].device, take.dtype, schedule, len(stepper.steps))
        steps, sums = schedule.on(state["latents"].device), []
        nodes = [_to_host(state["latents"])] if hooks.trajectory else []
        taken = 0
        for i in stepper.steps:
            if hooks.interrupted():
                break
            state, squares = take(steps[i], state)
            taken += 1
            if squares is not None:
                sums.append(squares)
            hooks.progress()
            if hooks.on_step is not None:
                with ordinary():
                    changed = _ask(hooks, taken, schedule.t[i + 1].item(), state)
                state = {**state, **changed}
            # A step's own sums say it too, and cost nothing; a callback may have put anything into the state.
            measured = squares is not None and hooks.on_step is None
            finite.watch(taken, i, state["latents"], squares[:, 1] if measured else None)
            if hooks.trajectory:
                nodes.append(_to_host(state["latents"]))
        if taken:  # sums are of the last f; what a method made of it has no next step to show in
            finite.watch(taken, i, state["latents"])
        finite.close()
    with ordinary():
        return Run(
            state={name: value.detach().clone() for name, value in state.items()},
            steps_taken=taken,
            residual=_relative(torch.stack(sums)) if sums else None,
            trajectory=torch.stack(nodes) if nodes else None,
            seconds=time.perf_counter() - begin,
        )


def _ordinary() -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts outside inference mode, the loop's and a caller's: what is made in one can be written into and
    differentiated. Gradients are on, but where the caller has switched them off by torch.no_grad.
    """
    gradients = torch.is_grad_enabled() or torch.is_inference_mode_enabled()

    @contextmanager
    def ordinary() -> Iterator[None]:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield

    return ordinary


def _ask(hooks: Hooks, taken: int, t: int | float, state: State) -> State:
    """What the caller's function left of the tensors it was shown, or returned in their place.

    Copied on the way in and out: a step may reuse the state's memory, and the caller may keep what it was given.
    """
    unknown = [name for name in hooks.shown if name not in state]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs {unknown} are not in the state {sorted(state)}")
    shown = {name: state[name].clone() for name in hooks.shown}
    new = hooks.on_step(taken, t, dict(shown))
    left = {**hooks.checked(shown, state), **hooks.checked(new, state)}
    return {name: value.detach().clone() for name, value in left.items()}


def _relative(sums: torch.Tensor) -> torch.Tensor:
    """(steps, B) |f(y) - y| / |f(y)| from their squares, float64 on the CPU."""
    gap, size = sums.to("cpu", torch.float64, copy=True).unbind(-1)[:2]
    return (gap / size).sqrt()


def _to_host(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", copy=True)


def _on_its_way(x: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A copy on the host, and when it is there."""
    host, event = torch.empty(x.shape, dtype=x.dtype, pin_memory=True), torch.cuda.Event()
    host.copy_(x, non_blocking=True)
    event.record(torch.cuda.current_stream(x.device))
    return host, event


class _FiniteCheck:
    """A sum of each image a step: on a CPU looked at at once, on a GPU sent over every few steps, never waited for."""

    def __init__(self, device: torch.device, dtype: torch.dtype, schedule: Schedule, total: int) -> None:
        self.device, self.dtype, self.schedule, self.total = device, dtype, schedule, total
        self.sums: list[torch.Tensor] = []
        """(B,) of each step, on the device."""
        self.steps: list[tuple[int, int]] = []
        """What was watched: how many steps were taken, and the last one's number."""
        self.unsent = 0
        """The first row that is not on its way."""
        self.sent: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        """The first row of what is on its way, the rows on the host, and when they are there."""

    def watch(self, number: int, i: int, latents: torch.Tensor, sums: torch.Tensor | None = None) -> None:
        """Takes the state after a step, or one number an image that is finite where all of the image is."""
        self.sums.append(latents.flatten(1).sum(1) if sums is None else sums)
        self.steps.append((number, i))
        if self.device.type == "cpu" or (self.device.type == "cuda" and len(self.steps) % EVERY == 0):
            self._send()
        self._read(wait=self.device.type == "cpu")

    def close(self) -> None:
        if self.unsent < len(self.steps):
            self._send()
        self._read(wait=True)

    def _send(self) -> None:
        first, self.unsent = self.unsent, len(self.steps)
        rows = torch.stack(self.sums[first:]) if self.unsent - first > 1 else self.sums[first].unsqueeze(0)
        self.sent.append((first, *(_on_its_way(rows) if self.device.type == "cuda" else (rows.cpu(), None))))

    def _read(self, wait: bool) -> None:
        while self.sent:
            first, rows, event = self.sent[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self.sent.popleft()
            for (number, i), row in zip(self.steps[first:], rows.tolist(), strict=False):
                bad = [j for j, total in enumerate(row) if not math.isfinite(total)]
                if bad:
                    raise FloatingPointError(self._message(number, i, bad, len(row)))

    def _message(self, number: int, i: int, bad: list[int], batch: int) -> str:
        names = ", ".join(str(j + 1) for j in bad[:8]) + (", ..." if len(bad) > 8 else "")
        wide = self.dtype in (torch.float32, torch.float64)
        remedy = "check the image and the weights for non-finite values" if wide else "try dtype=torch.float32"
        return (
            f"latents became non-finite at step {number} of {self.total} (t={self.schedule.t[i + 1].item()}) in "
            f"image{'s' if len(bad) > 1 else ''} {names} of {batch}, "
            f"dtype {str(self.dtype).removeprefix('torch.')}; {remedy}"
        )
