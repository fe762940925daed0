"""Whole inversions, each a function without arguments: diffusers' own loop, `invert`, and the network of it alone.

All begin with the same latents and prompt, and encode the prompt within the call. Nothing here asks for a GPU but the
CUDA graphs; without one everything else runs too, which is how it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import DDIMInverseScheduler

from benchmarks.device import recorded
from invfast import invert
from invfast.denoiser import denoiser
from invfast.denoiser.clone import private
from invfast.denoiser.fused import fused
from invfast.methods import Method
from invfast.runtimes import RUNTIMES, Network, Spec

GRAPHS = "reduce-overhead"
"""The mode of torch.compile that has CUDA graphs of its own."""


class Done(NamedTuple):
    """How a call ended.

    Args:
        output: the latents at the noise end, or what the network answered.
        evaluations: that ran, needed or not, an image.
        loop: seconds of the loop alone, on the wall; NaN where that is all there is.
        graph: whether steps were replayed as CUDA graphs of ours; None where they are not ours.
    """

    output: torch.Tensor
    evaluations: float
    loop: float = math.nan
    graph: bool | None = None


Call = Callable[[], Done]


@dataclass(frozen=True)
class Task:
    """What all runners of a case do.

    Args:
        pipe: on its device, in its dtype.
        x: latents (B, 4, h, w) of the images.
        prompt: one for all.
        steps: of the grid.
    """

    pipe: Any
    x: torch.Tensor
    prompt: str
    steps: int


def diffusers_loop(task: Task, mode: str | None = None) -> Call:
    """The loop people write, DDIMInverseScheduler on the network's device as diffusers' own pipelines set it.

    Args:
        task: what is done.
        mode: of torch.compile; None leaves the network eager. With "reduce-overhead" its weights are channels_last.
    """
    pipe, dtype = task.pipe, task.pipe.unet.dtype
    network = _compiled(pipe.unet, mode)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)

    @torch.no_grad()
    def call() -> Done:
        device = task.x.device
        embeds = pipe.encode_prompt([task.prompt] * len(task.x), device, 1, False)[0]
        scheduler.set_timesteps(task.steps, device=device)
        latents = task.x.to(dtype)
        for t in scheduler.timesteps:
            if mode == GRAPHS:  # or the trees take the loop for one long step, and fail where it reuses memory
                torch.compiler.cudagraph_mark_step_begin()
            noise = network(latents, t, encoder_hidden_states=embeds, return_dict=False)[0]
            latents = scheduler.step(noise, t, latents).prev_sample
        return Done(latents, task.steps)

    return call


def ours(task: Task, runtime: str, method: str | Method = "ddim") -> Call:
    """`invert`, latents in."""

    def call() -> Done:
        given = {"method": method, "num_inference_steps": task.steps, "runtime": runtime}
        found = invert(task.pipe, task.x, task.prompt, **given)
        evaluations = found.stats.samples / len(task.x)
        return Done(found.latents, evaluations, found.stats.seconds, found.stats.cuda_graph)

    return call


def network_of(task: Task, runtime: str) -> Call:
    """The network that `invert` runs on a runtime, in a CUDA graph of its own: what no call can be faster than."""
    with _taken() as found:
        invert(task.pipe, task.x, task.prompt, method="ddim", num_inference_steps=task.steps, runtime=runtime)
    return replayed(*found[-1], task.steps, task.x.device)


def replayed(network: Network, inputs: Mapping[str, torch.Tensor], count: int, device: torch.device) -> Call:
    """`count` evaluations, one after another, each the replay of one CUDA graph."""
    out: list[torch.Tensor] = []

    def evaluate() -> None:
        out[:] = [network(**inputs)]

    with torch.inference_mode():
        # A compiled network copies what is no inference tensor, and that would be recorded with it.
        inputs = {name: value.clone() for name, value in inputs.items()}
        replay = recorded(evaluate, 1, device)

    @torch.inference_mode()
    def call() -> Done:
        for _ in range(count):
            replay()
        return Done(out[0], count, graph=True)

    return call


def plain(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], count: int, mode: str | None = None) -> Call:
    """`count` evaluations of a network as diffusers has it, eager or compiled in a mode of torch.compile."""
    network = _compiled(module, mode)
    static = {name: value for name, value in inputs.items() if name not in ("x", "t")}

    @torch.no_grad()
    def call() -> Done:
        for _ in range(count):
            if mode == GRAPHS:
                torch.compiler.cudagraph_mark_step_begin()
            out = network(inputs["x"], inputs["t"], **static, return_dict=False)[0]
        return Done(out.clone(), count)

    return call


def prepared(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], count: int, runtime: str) -> Call:
    """`count` evaluations of a network as a runtime of ours makes it, replayed."""
    engine, device, dtype = RUNTIMES[runtime], inputs["x"].device, inputs["x"].dtype
    said = engine.unavailable() or engine.refuses(device, dtype)
    if said:
        raise RuntimeError(said)
    own = private(module, dtype, engine.memory_format(device))
    own = fused(own) if engine.fuses(device) else own
    return replayed(engine.prepare(own, inputs, Spec(device, dtype, lambda: "")), inputs, count, device)


def _compiled(module: torch.nn.Module, mode: str | None) -> Any:
    if mode is None:
        return module
    if mode == GRAPHS:
        module = private(module, next(module.parameters()).dtype, torch.channels_last)
    return torch.compile(module, mode=mode, fullgraph=True)


@contextmanager
def _taken() -> Iterator[list[tuple[Network, Mapping[str, torch.Tensor]]]]:
    """The networks that calls of `invert` take out of the store, and what they are called with."""
    found, own = [], denoiser.runtimes.prepared

    def prepared(runtime: Any, make: Any, inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        found.append((own(runtime, make, inputs, spec), inputs))
        return found[-1][0]

    denoiser.runtimes.prepared = prepared
    try:
        yield found
    finally:
        denoiser.runtimes.prepared = own
