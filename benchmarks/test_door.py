"""How soon the command line answers what needs no model: each question beside `python -c pass`, in turn.

    python -m pytest benchmarks/test_door.py --benchmark-only

A process of this package is paid for in imports, which any machine does at its own speed: so the claim is a ratio.
On a machine that starts Python within 1 s / FACTOR, every answer comes within a second. Rows go to
out/bench/door.jsonl.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import rows

FACTOR = 20.0
"""Times as long as `python -c pass` an answer may take; that is a second where Python starts within 50 ms."""
ROUNDS = 11
COMPLETE = {"_INVFAST_COMPLETE": "complete_bash", "COMP_WORDS": "invfast invert --me", "COMP_CWORD": "2"}
MODULE = ("-m", "invfast")
QUESTIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "python -c pass": (("-c", "pass"), {}),
    "invfast --version": ((*MODULE, "--version"), {}),
    "invfast --help": ((*MODULE, "--help"), {}),
    "invfast invert --help": ((*MODULE, "invert", "--help"), {}),
    "invfast invert --metod": ((*MODULE, "invert", "--metod"), {}),
    "completion of --me": (MODULE, COMPLETE),
    "import invfast": (("-c", "import invfast"), {}),
}


def test_door(benchmark):
    """Rounds of every question in turn; the median of the ratios within a round is what counts."""
    found = measured(lambda one_round: benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1))
    benchmark.extra_info["rows"] = found
    rows.append("door", found)
    late = {each["runner"]: each["ratio"] for each in found if each["ratio"] > FACTOR}
    assert not late


def measured(repeat: Callable[[Callable[[], None]], Any]) -> list[dict[str, Any]]:
    """A row a question; `repeat` runs a round many times, of which the first warms up."""
    times: dict[str, list[float]] = {name: [] for name in QUESTIONS}

    def one_round() -> None:
        for name, (args, env) in QUESTIONS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *args], env={**os.environ, **env}, capture_output=True)
            times[name].append(time.perf_counter() - began)

    repeat(one_round)
    base = times["python -c pass"][1:]
    return [
        {
            "case": "door",
            "runner": name,
            **rows.percentiles(own[1:]),
            "ratio": statistics.median(mine / b for mine, b in zip(own[1:], base, strict=True)),
            **rows.place(),
        }
        for name, own in times.items()
    ]
