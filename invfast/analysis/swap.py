"""Swap of the first predicted noises: which steps an inversion's error comes from.

A step joins the noisier x_b and the cleaner x_a by x_a = p x_b + q o, o being the network's output. Where o was
recorded when the image was made, it can be put in place of what the network says now, either way:

    up      x_b = (x_a - q o) / p    the first k steps of an inversion follow the image's own path, exactly
    down    x_a = p x_b + q o        the first k steps of sampling go where the recorded path went, from another start

Upwards is There and Back Again's (arXiv 2410.23530, section 3): with few steps swapped most of the image is gone from
the latents, so the first steps make the error. Downwards the difference of the starts is carried along undamped, and
grows as alpha does: the network's own outputs are what draws a wrong start back to the image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch

from invfast import rows
from invfast.ambient import neutral
from invfast.analysis.base import Result, alike, checked
from invfast.api import invert
from invfast.inversion import Inversion
from invfast.methods import DDIM, Method
from invfast.methods.base import Problem, State, Stepper, Wrapping
from invfast.returning import reconstruct
from invfast.schedule import Step


@dataclass(frozen=True, repr=False)
class Swap(Result):
    """Where sampling ended.

    Args:
        k: how many outputs were replaced.
        distance: of each image from the recorded one, in latents, root mean square.
        relative: the same over the image's own root mean square.
    """

    k: int
    distance: tuple[float, ...]
    relative: tuple[float, ...]


@dataclass(frozen=True)
class Swapped(Method):
    """The first steps upwards by recorded outputs, the rest by a method."""

    steps: int
    outputs: torch.Tensor = field(repr=False, compare=False)
    method: Method

    def inverter(self, problem: Problem, start: int = 0) -> Stepper:
        return _Retraced(self, problem)


class _Retraced(Wrapping):
    """The inner stepper from step k on, behind what the recorded outputs say of those before."""

    def __init__(self, method: Swapped, problem: Problem) -> None:
        super().__init__(method.method.inverter(problem, method.steps), ())
        p, q = rows.down(problem.schedule)[:, 0].unbind(1)
        self.table, self.kernels = problem.place(torch.stack([1 / p, -q / p], -1).unsqueeze(1)), problem.kernels
        last_first = method.outputs[: problem.schedule.num_steps].flip(0)
        self.outputs = problem.place(last_first[: method.steps])

    def init(self, state: State) -> State:
        x = state["latents"]
        for step, output in enumerate(self.outputs):
            x = self.kernels.lincomb((x, output), self.table, step)[0]
        return self.inner.init({"latents": x})

    def around(self, step: Step, before: State) -> State:
        return {}


@neutral()
def swap_up(pipe: Any, inversion: Inversion, outputs: torch.Tensor, k: int, **options: Any) -> Inversion:
    """Inverts an image again, the network's outputs of the first k steps replaced by recorded ones.

    Method, grid, dtype, prompts and conditions are the inversion's. It costs what the method does for N - k steps.

    Args:
        pipe: the pipeline it was made with; left untouched.
        inversion: of the image that was recorded, on the same grid, run through.
        outputs: (N, n, C, h, w), `Recording.outputs`: the last of them belong to the first steps of an inversion.
        k: 0 to N - 1; 0 inverts as before.
        **options: of `invert`: runtime, dtype, embeddings, conditions.

    Returns:
        Inversion of the same image, to be held against the recorded noise.

    Raises:
        TypeError: no inversion, or outputs that are no tensor.
        ValueError: an interrupted inversion, k out of range, outputs that do not fit, a method that cannot begin at a
            later step; otherwise as `invert`.
    """
    steps = inversion.schedule.num_steps if isinstance(inversion, Inversion) else 0
    _check_swap(inversion, outputs, k, steps - 1, steps)
    if inversion.method.guidance_scale is not None:
        raise ValueError(f"{type(inversion.method).__name__} takes a second pass and cannot be swapped; invert by DDIM")
    given = {
        "schedule": inversion.schedule,
        "guidance_scale": inversion.guidance_scale,
        "negative_prompt": inversion.negative_prompt,
        "method": Swapped(k, outputs, inversion.method) if k else inversion.method,
        "dtype": inversion.stats.dtype if inversion.stats else None,
        **inversion.conditions,
        **options,
    }
    found = invert(pipe, inversion, inversion.prompt, **given)
    return dataclasses.replace(found, method=inversion.method)  # which a file can name


@neutral()
def swap(pipe: Any, inversion: Inversion, outputs: torch.Tensor, k: int, **options: Any) -> Swap:
    """Samples from an inversion's noise with the first k network outputs replaced by recorded ones.

    Sampling is DDIM's, of rectified flow Euler's, by whatever method the noise was found. It costs N - k evaluations:
    a step whose output is given asks nothing.

    Args:
        pipe: the pipeline it was made with; left untouched.
        inversion: of the image that was recorded, on the same grid, run through; its `init_latents` are where the
            recorded outputs led.
        outputs: (N or at least k, n, C, h, w), `Recording.outputs`, or of another inversion.
        k: 0 to N; 0 is plain sampling.
        **options: of `reconstruct`: guidance_scale, runtime, dtype, embeddings, conditions.

    Raises:
        TypeError: no inversion, or outputs that are no tensor.
        ValueError: an interrupted inversion, k out of range, outputs that do not fit; otherwise as `reconstruct`.
    """
    steps = inversion.schedule.num_steps if isinstance(inversion, Inversion) else 0
    target = _check_swap(inversion, outputs, k, steps, k)
    x = inversion.latents.double().cpu()
    downwards = rows.down(inversion.schedule)[:, 0].flip(0)
    for (p, q), output in zip(downwards[:k], outputs[:k].double().cpu(), strict=True):
        x = p * x + q * output
    if k < steps:
        rest = dataclasses.replace(inversion, latents=x.to(inversion.latents), method=DDIM(), state={}, node=steps - k)
        x = reconstruct(pipe, rest, output_type="latent", **options).latents.double().cpu()
    distance = (x - target).flatten(1).square().mean(1).sqrt()
    size = target.flatten(1).square().mean(1).sqrt()
    return Swap(k, tuple(distance.tolist()), tuple((distance / size).tolist()))


def _check_swap(inversion: Inversion, outputs: torch.Tensor, k: int, most: int, least: int) -> torch.Tensor:
    """The recorded end (n, C, h, w), float64 on the CPU. `most` bounds k, `least` how many outputs there are."""
    if not isinstance(inversion, Inversion):
        raise TypeError(f"inversion must be what invert() returns, got {type(inversion).__name__}")
    steps = inversion.schedule.num_steps
    if inversion.node != steps:
        raise ValueError(f"the inversion was interrupted at node {inversion.node} of {steps}; run it through")
    if not isinstance(k, Integral) or isinstance(k, bool) or not 0 <= k <= most:
        raise ValueError(f"k must be an integer from 0 to {most} on a grid of {steps} steps, got {k!r}")
    if not isinstance(outputs, torch.Tensor):
        raise TypeError(f"outputs must be a torch tensor (steps, n, C, h, w), got {type(outputs).__name__}")
    if outputs.ndim != 5 or len(outputs) < least:
        raise ValueError(f"outputs must be (at least {least} steps, n, C, h, w), got {tuple(outputs.shape)}")
    for each in outputs[:least]:
        alike("outputs of a step", each, "inversion's latents", inversion.latents)
    return checked("init_latents", inversion.init_latents).double()
