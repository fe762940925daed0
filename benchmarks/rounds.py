"""Calls in turn, round after round, within a limit of time; and a row of each."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import rows
from benchmarks.calls import GRAPHS, Call, Done
from benchmarks.device import peak_gib, timed

ROUNDS, FEWEST = 21, 3
READY_WITHIN, DONE_WITHIN = 330, 470
"""Seconds of a part: after the first no further runner is made ready, after the second no further round begins."""
EAGER, TREES = "diffusers eager", f"diffusers torch.compile {GRAPHS}, channels_last"
"""What speeds are relative to."""
ALONE = "its network alone"


@dataclass(frozen=True)
class Case:
    """What runs in turn.

    Args:
        name: of the case.
        batch: images.
        steps: evaluations of DDIM.
        dtype: the network's.
        runners: what makes them, the most wanted first, for time may run out.
        wanted: the output a method's runners should have, by method; "" are all others.
        flops: of one evaluation of the batch.
    """

    name: str
    batch: int
    steps: int
    dtype: torch.dtype
    runners: dict[str, Callable[[], Call]]
    wanted: dict[str, torch.Tensor]
    flops: int

    def error(self, runner: str, output: torch.Tensor) -> float:
        """||d|| / ||ref||; NaN for a part of a call."""
        if ALONE in runner:
            return math.nan
        wanted = self.wanted[next((name for name in self.wanted if name and name in runner), "")]
        return float((output.float() - wanted).norm() / wanted.norm())


@dataclass
class _Ready:
    """A runner that has run twice: compiled, recorded, warm."""

    call: Call
    done: Done
    error: float
    own_gib: float
    first: float
    walls: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    loops: list[float] = field(default_factory=list)


def measured(case: Case, device: torch.device, began: float) -> list[dict[str, Any]]:
    """A row a runner; `began` is when the part did, by `time.monotonic`."""
    ready, left_out = _ready(case, device, began)
    peaks: list[float] = []
    for number in range(ROUNDS):
        if number >= FEWEST and time.monotonic() - began > DONE_WITHIN:
            break
        peaks.append(rows.gemm_flops(case.dtype, device))
        for name, runner in list(ready.items()):
            try:
                done, wall, event = timed(runner.call, device)
            except Exception as error:
                left_out[name] = _said(error)
                del ready[name]
                continue
            runner.walls.append(wall)
            runner.events.append(event)
            runner.loops.append(done.loop)
    found = [_row(case, name, ready, statistics.median(peaks), device) for name in ready]
    dtype = str(case.dtype).removeprefix("torch.")
    return found + [rows.skipped(case.name, name, dtype, why, device.type) for name, why in left_out.items()]


def _ready(case: Case, device: torch.device, began: float) -> tuple[dict[str, _Ready], dict[str, str]]:
    """The runners, and why others are not among them."""
    ready, left_out = {}, {}
    for name, make in case.runners.items():
        if time.monotonic() - began > READY_WITHIN:
            left_out[name] = f"its part was {READY_WITHIN} s old"
            continue
        start = time.perf_counter()
        try:
            (call, _), own_gib = peak_gib(lambda make=make: _made(make), device)
            done, *_ = timed(call, device)  # the second: torch's own graphs are recorded in it
        except Exception as error:  # whatever a compiler raises: the others still run
            left_out[name] = _said(error)
            continue
        seconds = time.perf_counter() - start
        ready[name] = _Ready(call, done, case.error(name, done.output), own_gib, seconds)
        print(f"{case.name}: {name} is ready after {seconds:.0f} s", flush=True)
    return ready, left_out


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _made(make: Callable[[], Call]) -> tuple[Call, Done]:
    call = make()
    return call, call()


def _row(case: Case, name: str, ready: dict[str, _Ready], peak: float, device: torch.device) -> dict[str, Any]:
    own = ready[name]
    figures = rows.percentiles(own.walls)
    return {
        "case": case.name,
        "runner": name,
        "dtype": str(case.dtype).removeprefix("torch."),
        **figures,
        "events": statistics.median(own.events),
        "loop": statistics.median(own.loops),
        "steps": case.steps,
        "batch": case.batch,
        "evaluations": own.done.evaluations,
        "graph": own.done.graph,
        "speed": _ratio(ready.get(EAGER), own),
        "speed_graphs": _ratio(ready.get(TREES), own),
        "error": own.error,
        "share_of_peak": case.flops * own.done.evaluations / figures["p50"] / peak,
        "own_gib": own.own_gib,
        "first": own.first,
        **rows.place(device.type),
    }


def _ratio(base: _Ready | None, own: _Ready) -> float:
    """How many times as fast: the median of ratios within a round."""
    return math.nan if base is None else statistics.median(b / o for b, o in zip(base.walls, own.walls, strict=True))
