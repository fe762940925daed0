"""How much of an inversion is not the network: python -m benchmarks.outside [METHOD ...].

50 steps of the bundled pipeline on the eager runtime, one sample image. Per method the milliseconds a step inside and
outside the network (updates, residuals, mixing, checks, progress), and the share of the latter. Where a method
differentiates the network, its backward pass is the network's time too; where it changes the embeddings from step to
step, so are their projections to keys and values. Rows go to out/bench/outside.jsonl.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from benchmarks import report, rows
from invfast import demo, invert, runtimes
from invfast.adapters import base
from invfast.methods import METHODS

STEPS, ROUNDS = 50, 3


def share(pipe, image, prompt: str, method: str, kernels: str | None = None) -> tuple[float, float]:
    """(seconds of a run, seconds of it inside the network), the medians of a few runs."""
    spent = [0.0]
    prepared, predictor, backward = runtimes.prepared, base.Conditioned, torch.autograd.grad

    def timed(network):
        def call(*args, **named):
            began = time.perf_counter()
            out = network(*args, **named)
            spent[0] += time.perf_counter() - began
            return out

        return call

    found = []
    base.runtimes.prepared = lambda *given: timed(prepared(*given))
    base.Conditioned = lambda *given, prompt, **named: predictor(*given, prompt=timed(prompt), **named)
    torch.autograd.grad = timed(backward)
    try:
        for _ in range(ROUNDS):
            spent[0] = 0.0
            stats = invert(
                pipe, image, prompt, method=method, num_inference_steps=STEPS, runtime="eager", kernels=kernels
            ).stats
            found.append((stats.seconds, spent[0]))
    finally:
        base.runtimes.prepared, base.Conditioned, torch.autograd.grad = prepared, predictor, backward
    return tuple(statistics.median(each) for each in zip(*found, strict=True))


def main() -> None:
    """Prints a table for the named methods, by default all."""
    pipe = demo.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    image, prompt = demo.load_images()["peach"]
    names = sys.argv[1:] or list(METHODS)
    invert(pipe, image, prompt, runtime="eager")
    found = []
    for name in names:
        whole, network = (seconds / STEPS for seconds in share(pipe, image, prompt, name))
        figures = {"step": whole, "outside": whole - network}
        found.append({"case": f"{STEPS} steps, eager float32", "runner": name, **figures, **rows.place()})
    rows.append("outside", found)
    print(report.outside_tables(found))


if __name__ == "__main__":
    main()
