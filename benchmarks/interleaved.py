"""Runners side by side: rounds of one call by each in turn, because a machine's speed drifts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import rows
from benchmarks.memory import Memory
from benchmarks.runners import Runner
from invfast.runtimes import RUNTIMES, bfloat16_on_cpu

ROUNDS = 11

Made = Mapping[str, tuple[str, Callable[[], Runner]]]
"""By the runner's name: its dtype, and what makes it. The first is the baseline."""


@dataclass(frozen=True)
class Interleaved:
    """A case for several runners.

    Args:
        name: of the case.
        x: what each is called with.
        reference: what it should answer.
        flops: of one call.
        wanted: parts of the names of those to run, separated by commas; all where it is empty.
    """

    name: str
    x: torch.Tensor
    reference: torch.Tensor
    flops: int
    wanted: str | None

    def run(self, made: Made, suite: str, benchmark: Any) -> None:
        """Times them and adds a row a runner to the suite's file."""
        runners, own_gib, skipped = self._ready(made)
        times: dict[str, list[float]] = {runner: [] for runner in runners}
        peaks: dict[str, list[float]] = {made[runner][0]: [] for runner in runners}
        errors = {name: self._error(runner.evaluate(self.x)) for name, runner in runners.items()}

        def one_round() -> None:
            for dtype, found in peaks.items():
                found.append(rows.gemm_flops(getattr(torch, dtype)))
            for runner, (step, _) in runners.items():
                began = time.perf_counter()
                step(self.x)
                times[runner].append(time.perf_counter() - began)

        benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1, warmup_rounds=1)
        found = []
        for runner, seconds in times.items():
            dtype = made[runner][0]
            peak = statistics.median(peaks[dtype])
            row = rows.row(self.name, runner, dtype, seconds[1:], errors[runner], self.flops, peak, own_gib[runner])
            # Only times of one round are divided, then the median is taken.
            pairs = list(zip(times.get(next(iter(made)), ()), seconds, strict=False))[1:]
            found.append({**row, "speed": statistics.median([base / own for base, own in pairs] or [math.nan])})
        found += [rows.skipped(self.name, runner, made[runner][0], why) for runner, why in skipped.items()]
        benchmark.extra_info["rows"] = found
        rows.append(suite, found)

    def _ready(self, made: Made) -> tuple[dict[str, Runner], dict[str, float], dict[str, str]]:
        """The runners, the memory each took beside the module's until it had run once, and why others are left out."""
        ready, own_gib, skipped = {}, {}, {}
        for runner, (dtype, make) in made.items():
            why = self._left_out(runner, dtype)
            if why:
                skipped[runner] = why
                continue
            try:
                with Memory() as memory:
                    ready[runner] = make()
                    ready[runner].step(self.x)
                own_gib[runner] = memory.peaks["own_gib"] - memory.first["own_gib"]
            except RuntimeError as error:
                skipped[runner] = str(error).splitlines()[0]
        return ready, own_gib, skipped

    def _left_out(self, runner: str, dtype: str) -> str | None:
        if self.wanted and not any(each in runner for each in self.wanted.split(",")):
            return "left out of this run (--runners)"
        if dtype != "bfloat16":
            return None
        if "OpenVINO" in runner and RUNTIMES["openvino"].refuses(torch.device("cpu"), torch.bfloat16) is not None:
            return "this CPU has no bfloat16 arithmetic in OpenVINO"
        if bfloat16_on_cpu().speed < 0.5 and "64 px" not in self.name:
            return f"bfloat16 measured {bfloat16_on_cpu().speed:.2f} x float32 here: minutes a step"
        return None

    def _error(self, got: torch.Tensor) -> float:
        """||d|| / ||ref|| of one call."""
        return ((got.float() - self.reference).norm() / self.reference.norm()).item()
