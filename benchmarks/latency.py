"""Latency of whole `invert` calls on a GPU: python -m benchmarks.latency; runtimes and graphs in turn, one run.

The bundled model is small and bound by launches, which is what graphs remove. Rows go to out/bench/latency.jsonl.
Without a CUDA device it says so and measures nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

from benchmarks import rows
from invfast import demo, invert
from invfast.runtimes import RUNTIMES

ROUNDS = 11
VARIANTS = [("eager", False), ("eager", None), ("compile", False), ("compile", None), ("tensorrt", None)]


def measure(pipe: Any, image: Any, prompt: str, steps: int = 50) -> list[dict[str, Any]]:
    """Rows of every runtime with and without graphs; speed is the median of the rounds' ratios to eager without."""
    runs: dict[str, dict[str, Any]] = {}
    skipped = []
    for runtime, graph in VARIANTS:
        name = f"{runtime}, {'plain' if graph is False else 'CUDA graph'}"
        given = {"method": "ddim", "num_inference_steps": steps, "runtime": runtime, "cuda_graph": graph}
        try:
            if runtime not in RUNTIMES:
                raise ValueError(f"no runtime {runtime!r} in this version")
            invert(pipe, image, prompt, **given)
            runs[name] = given
        except (RuntimeError, ValueError) as error:
            skipped.append(rows.skipped("invert", name, "float32", str(error).splitlines()[0]))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, given in runs.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            invert(pipe, image, prompt, **given)
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    base = times[next(iter(times))]
    found = [
        {
            "case": f"invert, bundled model, {steps} steps",
            "runner": name,
            **rows.percentiles(each),
            "speed": statistics.median(b / t for b, t in zip(base, each, strict=True)),
            **rows.place(),
        }
        for name, each in times.items()
    ]
    return [*found, *skipped]


def main() -> None:
    """Measures the bundled model; prints a line a variant."""
    if not torch.cuda.is_available():
        sys.exit("latency: not run, there is no CUDA device here")
    pipe = demo.load_pipeline().to("cuda")
    pipe.set_progress_bar_config(disable=True)
    image, prompt = demo.load_images()["peach"]
    found = measure(pipe, image, prompt)
    rows.append("latency", found)
    for row in found:
        said = f"not run: {row['skipped']}" if "skipped" in row else f"{row['p50'] * 1e3:.1f} ms, {row['speed']:.2f} x"
        print(f"{row['runner']}: {said}")


if __name__ == "__main__":
    main()
