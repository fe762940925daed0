"""How much of a whole inversion is not the network: python -m benchmarks.outside [METHOD ...].

50 steps of the bundled pipeline on the eager runtime, one sample image, from the second call on: what is ready is kept
between calls. Time is that of the whole call, from the image to the noise. Per method the milliseconds a step of it,
those outside the network (the VAE and the text encoder, digests, updates, residuals, mixing, checks, progress), their
share, and how many of them lie before and after the loop. Where a method differentiates the network, its backward pass
is the network's time too; where it changes the embeddings from step to step, so are their projections to keys and
values. Rows go to out/bench/outside.jsonl.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks import report, rows
from invfast import demo, invert, runtimes
from invfast.denoiser import denoiser
from invfast.methods import METHODS

STEPS, ROUNDS = 50, 3


class Share(NamedTuple):
    """Seconds of a call: all of it, of its loop or loops, and inside the network."""

    call: float
    loop: float
    network: float


def share(pipe: Any, image: Any, prompt: str, method: str, kernels: str | None = None, steps: int = STEPS) -> Share:
    """The medians of a few calls, the first of all not among them."""
    given = {"method": method, "num_inference_steps": steps, "runtime": "eager", "kernels": kernels}
    found = []
    with watched() as spent:
        for _ in range(ROUNDS + 1):
            spent[0], began = 0.0, time.perf_counter()
            stats = invert(pipe, image, prompt, **given).stats
            found.append((time.perf_counter() - began, stats.seconds, spent[0]))
    return Share(*(statistics.median(each) for each in zip(*found[1:], strict=True)))


@contextmanager
def watched() -> Iterator[list[float]]:
    """The seconds spent in networks, in a list of one, while calls of `invert` run on a device that the host waits for.

    What is timed is what a call takes out of the store, so a network made by an earlier call is timed as well.
    """
    spent = [0.0]
    prepared, predictor, backward = runtimes.prepared, denoiser.Conditioned, torch.autograd.grad

    def timed(network: Callable) -> Callable:
        def call(*args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            out = network(*args, **named)
            spent[0] += time.perf_counter() - began
            return out

        return call

    denoiser.runtimes.prepared = lambda *given: timed(prepared(*given))
    denoiser.Conditioned = lambda *given, prompt, **named: predictor(*given, prompt=timed(prompt), **named)
    torch.autograd.grad = timed(backward)
    try:
        yield spent
    finally:
        denoiser.runtimes.prepared, denoiser.Conditioned, torch.autograd.grad = prepared, predictor, backward


def main() -> None:
    """Prints a table for the named methods, by default all."""
    pipe = demo.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    image, prompt = demo.load_images()["peach"]
    found = []
    for name in sys.argv[1:] or [name for name, each in METHODS.items() if not each.flow_only]:
        call, loop, network = (seconds / STEPS for seconds in share(pipe, image, prompt, name))
        figures = {"step": call, "outside": call - network, "around": call - loop}
        found.append({"case": f"{STEPS} steps, eager float32", "runner": name, **figures, **rows.place()})
    rows.append("outside", found)
    print(report.outside_tables(found))


if __name__ == "__main__":
    main()
