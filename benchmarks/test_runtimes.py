"""One step of an inversion: every runtime beside what people use today, interleaved in one run.

    python -m pytest benchmarks --benchmark-only --timeout=0 -k "SD1.5 and 256" --runners "eager,OpenVINO"

All of SD1.5's runners at once take 27 GiB of memory; `--runners` names some, the baseline should be among them.

A row a runner goes to out/bench/runtimes.jsonl; `python -m benchmarks.report` makes table and chart of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import rows
from benchmarks.memory import Memory
from benchmarks.networks import CASES
from benchmarks.runners import Runner, diffusers_loop, ours, raw_openvino
from invfast.runtimes import bfloat16_on_cpu

F32, BF16 = torch.float32, torch.bfloat16
RUNNERS: dict[str, tuple[str, Callable[..., Runner]]] = {
    "diffusers eager float32": ("float32", partial(diffusers_loop, F32)),
    "diffusers torch.compile float32": ("float32", partial(diffusers_loop, F32, compiled=True)),
    "raw OpenVINO float32": ("float32", partial(raw_openvino, "f32")),
    "invfast eager float32": ("float32", partial(ours, "eager", F32)),
    "invfast compile float32": ("float32", partial(ours, "compile", F32)),
    "invfast openvino float32": ("float32", partial(ours, "openvino", F32)),
    "diffusers eager bfloat16, channels_last": ("bfloat16", partial(diffusers_loop, BF16)),
    "diffusers torch.compile bfloat16": ("bfloat16", partial(diffusers_loop, BF16, compiled=True)),
    "raw OpenVINO bfloat16": ("bfloat16", partial(raw_openvino, "bf16")),
    "invfast eager bfloat16": ("bfloat16", partial(ours, "eager", BF16)),
    "invfast compile bfloat16": ("bfloat16", partial(ours, "compile", BF16)),
    "invfast openvino bfloat16": ("bfloat16", partial(ours, "openvino", BF16)),
}
BASELINE = "diffusers eager float32"
ROUNDS = 11


@pytest.mark.parametrize("name", CASES)
def test_one_step(name, benchmark, request):
    """Rounds of one step by each runner in turn; per runner the times, and the error of the step against float32."""
    case = CASES[name]
    module = case.network()
    x = case.inputs()["x"]
    with FlopCounterMode(display=False) as counter:
        reference = diffusers_loop(F32, module, case).evaluate(x)
    flops = counter.get_total_flops()
    runners, own_gib, skipped = _ready(name, module, case, request.config.getoption("runners"))
    times: dict[str, list[float]] = {runner: [] for runner in runners}
    peaks: dict[str, list[float]] = {RUNNERS[runner][0]: [] for runner in runners}
    errors = {name: _error(runner.evaluate(x), reference) for name, runner in runners.items()}

    def one_round() -> None:
        for dtype, found in peaks.items():
            found.append(rows.gemm_flops(getattr(torch, dtype)))
        for runner, (step, _) in runners.items():
            began = time.perf_counter()
            step(x)
            times[runner].append(time.perf_counter() - began)

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    peak = {dtype: statistics.median(found) for dtype, found in peaks.items()}
    found = []
    for runner, seconds in times.items():
        dtype = RUNNERS[runner][0]
        found.append(rows.row(name, runner, dtype, seconds[1:], errors[runner], flops, peak[dtype], own_gib[runner]))
    for row in found:  # the machine's speed drifts: only times of one round are divided, then the median is taken
        pairs = zip(times.get(BASELINE, ()), times[row["runner"]], strict=False)
        row["speed"] = statistics.median([base / own for base, own in list(pairs)[1:]] or [math.nan])
    found += [rows.skipped(name, runner, RUNNERS[runner][0], why) for runner, why in skipped.items()]
    benchmark.extra_info["rows"] = found
    rows.append("runtimes", found)


def _ready(name, module, case, wanted):
    """The runners, the memory each took beside the module's until it had run once, and what was left out and why."""
    ready, own_gib, skipped = {}, {}, {}
    for runner, (dtype, make) in RUNNERS.items():
        if wanted and not any(each in runner for each in wanted.split(",")):
            skipped[runner] = "left out of this run (--runners)"
        elif dtype == "bfloat16" and "OpenVINO" in runner and not _openvino_has_bfloat16():
            skipped[runner] = "this CPU has no bfloat16 arithmetic in OpenVINO"
        elif dtype == "bfloat16" and bfloat16_on_cpu().speed < 0.5 and "64 px" not in name:
            skipped[runner] = f"bfloat16 measured {bfloat16_on_cpu().speed:.2f} x float32 here: minutes a step"
        else:
            try:
                with Memory() as memory:
                    ready[runner] = make(module, case)
                    ready[runner].step(case.inputs()["x"])
                own_gib[runner] = memory.peaks["own_gib"] - memory.first["own_gib"]
            except RuntimeError as error:
                skipped[runner] = str(error).splitlines()[0]
    return ready, own_gib, skipped


def _openvino_has_bfloat16() -> bool:
    from invfast.runtimes import RUNTIMES

    return RUNTIMES["openvino"].refuses(torch.device("cpu"), BF16) is None


def _error(got: torch.Tensor, reference: torch.Tensor) -> float:
    """||d|| / ||ref|| of one evaluation."""
    return ((got.float() - reference).norm() / reference.norm()).item()
