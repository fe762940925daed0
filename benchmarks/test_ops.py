"""The ops between two evaluations: every implementation beside its definition, interleaved in one run.

    python -m pytest benchmarks/test_ops.py --benchmark-only --timeout=0

Gated columns are the implementations of `invfast.ops`, each against the reference op. "expression" is the plain float
arithmetic without tables, steps or checks, and torch.compile of it: what a loop written by hand would run. On a GPU
every runner is timed twice: called by the host, which takes longer to ask than most kernels to run, and inside a CUDA
graph, as captured steps run it. Rows go to out/bench/ops.jsonl, a GPU's to gpu_ops.jsonl; `python -m benchmarks.report`
makes tables of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import rows
from benchmarks.device import recorded, wait
from invfast import ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(1, 4, 64, 64), (4, 4, 64, 64), (16, 4, 128, 128), (64, 16, 128, 128)]
ROUNDS, SLICE = 41, 2e-3  # rounds, and seconds a runner has in each
GRAPH, IN_A_GRAPH = ", in a CUDA graph", 50  # calls that one graph holds, so that its own launch does not count
HOW = ["", GRAPH] if DEVICE.type == "cuda" else [""]
STEP_DTYPE = torch.float16 if DEVICE.type == "cuda" else torch.float32  # in which the network would run
STEP_FLOPS = 0.803e12  # SD1.5 at 512 px, one evaluation: the network beside which an op at (1, 4, 64, 64) runs
COLUMNS = 3  # of Anderson's history

Call = Callable[[], Any]


def lincomb(shape) -> tuple[dict[str, Call], int]:
    """(runners, bytes moved) of a DDIM update, x and the network's output in float32."""
    x, o = (torch.randn(shape, device=DEVICE) for _ in range(2))
    table = torch.tensor([[[1.01, -0.02]]], device=DEVICE).expand(50, 1, 2).contiguous()

    def expression() -> torch.Tensor:
        return 1.01 * x + -0.02 * o

    found = {name: lambda k=k: k.lincomb((x, o), table, 7) for name, k in _kernels().items()}
    return {**found, **_by_hand(expression)}, 3 * x.nbytes


def lincomb_residual(shape) -> tuple[dict[str, Call], int]:
    """(runners, bytes moved) of one fixed-point iteration and its residual."""
    x, y, o = (torch.randn(shape, device=DEVICE) for _ in range(3))
    table = torch.tensor([[[1.01, 0.01, -0.02]]], device=DEVICE).expand(50, 1, 3).contiguous()

    def expression() -> tuple[torch.Tensor, ...]:
        f = 1.01 * x + 0.01 * y + -0.02 * o
        return f, (f - y).square().sum((1, 2, 3)), f.square().sum((1, 2, 3))

    found = {name: lambda k=k: k.lincomb_residual((x, y, o), table, 7, y) for name, k in _kernels().items()}
    return {**found, **_by_hand(expression)}, 4 * x.nbytes


def anderson_mix(shape) -> tuple[dict[str, Call], int]:
    """(runners, bytes moved) of mixing three values by their residuals."""
    values = [torch.randn(shape, device=DEVICE) for _ in range(COLUMNS)]
    residuals = [torch.randn(shape, device=DEVICE) for _ in range(COLUMNS)]

    def expression() -> torch.Tensor:
        r = torch.stack(residuals, 1).flatten(2)
        ones = torch.ones(shape[0], COLUMNS, 1, device=DEVICE)
        a = torch.linalg.solve((r @ r.mT).double(), ones.double()).float()
        a = (a / a.sum(1, keepdim=True)).unsqueeze(-1)
        return sum(f * a[:, j, :, None] for j, f in enumerate(values))

    found = {name: lambda k=k: k.anderson_mix(values, residuals) for name, k in _kernels().items()}
    return {**found, **_by_hand(expression)}, (2 * COLUMNS + 1) * values[0].nbytes


OPS = {"lincomb": lincomb, "lincomb_residual": lincomb_residual, "anderson_mix": anderson_mix}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_op(op, shape, how, benchmark):
    """Rounds of every runner in turn: times, speed against the reference op, and bytes a second beside a copy."""
    found = measured(op, shape, how, lambda one_round: benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1))
    benchmark.extra_info["rows"] = found
    # The tables of a CPU and of a GPU stand beside one another.
    rows.append("ops" if DEVICE.type == "cpu" else "gpu_ops", found)


def measured(op: str, shape, how: str, repeat: Callable[[Call], Any]) -> list[dict[str, Any]]:
    """A row a runner; `repeat` runs a round many times, of which the first warms up."""
    with torch.inference_mode():
        runners, moved = OPS[op](shape)
        source = torch.randn(moved // 8, device=DEVICE)
        target = torch.empty_like(source)
        runners["copy"] = lambda: target.copy_(source)
        left_out = {}
        if how == GRAPH:
            runners, left_out = _in_graphs(runners)
        calls = {name: _calls(call) for name, call in runners.items()}
        times: dict[str, list[float]] = {name: [] for name in runners}
        peaks: list[float] = []

        def one_round() -> None:
            if len(peaks) < 3:
                peaks.append(rows.gemm_flops(STEP_DTYPE, DEVICE))
            for name, call in runners.items():
                times[name].append(_seconds(call, calls[name]) / (IN_A_GRAPH if how == GRAPH else 1))

        repeat(one_round)
    case = f"{op} {shape}{how}"
    found = [_row(case, name, times, moved, max(peaks), shape == SHAPES[0]) for name in times]
    return found + [rows.skipped(case, name, "float32", why, DEVICE.type) for name, why in left_out.items()]


def _in_graphs(runners: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Each runner as a graph of many of its calls, and why others cannot be one."""
    found, left_out = {}, {}
    for name, call in runners.items():
        try:
            found[name] = recorded(call, IN_A_GRAPH, DEVICE)
        except RuntimeError as error:
            left_out[name] = str(error).splitlines()[0]
    return found, left_out


def _row(case, name, times, moved, peak, beside_a_step) -> dict[str, Any]:
    seconds = times[name][1:]
    return {
        "case": case,
        "runner": name,
        **rows.percentiles(seconds),
        "speed": _ratio(times.get("reference"), times[name]),
        "bytes": moved,
        "share_of_copy": _ratio(times.get("copy"), times[name]),
        "share_of_step": statistics.median(seconds) / (STEP_FLOPS / peak) if beside_a_step else math.nan,
        **rows.place(DEVICE.type),
    }


def _ratio(base: list[float] | None, own: list[float]) -> float:
    """How many times as fast: the median of ratios within a round, without the first."""
    return math.nan if base is None else statistics.median(b / o for b, o in zip(base[1:], own[1:], strict=True))


def _kernels() -> dict[str, ops.Kernels]:
    return {name: ops.resolve(DEVICE, name) for name in ops.NAMES if ops.unavailable(name, DEVICE) is None}


def _by_hand(expression: Call) -> dict[str, Call]:
    compiled = torch.compile(expression, fullgraph=True, dynamic=False)
    return {"expression": expression, "expression, torch.compile": compiled}


def _calls(call: Call) -> int:
    """How many calls fill a slice of a round."""
    call()
    return max(1, round(SLICE / _seconds(call, 3)))


def _seconds(call: Call, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    wait(DEVICE)
    return (time.perf_counter() - began) / count
