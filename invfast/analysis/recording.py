"""Images sampled from known noise, with all that is on the way: what an inversion of them is held against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from invfast import adapters, arguments, grids, plain, rows
from invfast.ambient import neutral
from invfast.analysis.base import checked
from invfast.arguments import Text
from invfast.inversion import Inversion
from invfast.methods import DDIM
from invfast.methods.base import Linear, Problem
from invfast.returning import reconstruct
from invfast.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Recording:
    """An image as it was sampled, all on the CPU.

    Args:
        noise: (n, C, h, w) where it began.
        latents: (n, C, h, w) x_0, where it ended.
        outputs: (N, n, C, h, w) the network's outputs, guidance folded in, in the order they were taken: the noisiest
            step first.
        trajectory: (N + 1, n, C, h, w) the latents of every node, x_0 first, as `Inversion.trajectory`.
        schedule: the grid.
        inversion: noise and images as an exact inversion has them: to be inverted again (`invert` takes it in place of
            images), edited, interpolated, saved.
    """

    noise: torch.Tensor
    latents: torch.Tensor
    outputs: torch.Tensor
    trajectory: torch.Tensor
    schedule: Schedule
    inversion: Inversion

    __repr__ = plain.line


@dataclass(frozen=True)
class Recorded(DDIM):
    """DDIM whose way back also hands on the network's output, as "output" in the state."""

    def sampler(self, problem: Problem, start: int) -> Linear:
        down = rows.down(problem.schedule)
        output = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand_as(down)
        both = torch.cat([down, output], 1)
        unused = torch.zeros(len(down), 2, 1, dtype=torch.float64)  # of the output before
        table = problem.place_guided(torch.cat([both[..., :1], unused, both[..., 1:]], -1))
        return Linear(problem.kernels, table, range(start - 1, -1, -1), carried=("output",))


@neutral()
def record(
    pipe: Any,
    noise: torch.Tensor,
    prompt: Text = "",
    *,
    num_inference_steps: int = 50,
    schedule: Schedule | None = None,
    guidance_scale: float = 1.0,
    negative_prompt: Text | None = None,
    **options: Any,
) -> Recording:
    """Samples images from known noise by DDIM, of rectified flow by Euler's steps, and keeps all of the way.

    Args:
        pipe: a pipeline as for `invert`; left untouched.
        noise: (n, C, h, w) standard normal, finite floats.
        prompt: one text for all or one an image.
        num_inference_steps: steps of the grid.
        schedule: a grid of your own in its place.
        guidance_scale: above 1 the outputs are those of both branches, weighted.
        negative_prompt: one text or one an image, for guidance above 1.
        **options: of `reconstruct`: runtime, dtype, prompt_embeds, negative_prompt_embeds, conditions.

    Raises:
        TypeError, ValueError: as `reconstruct`.
    """
    start = checked("noise", noise)
    model = adapters.resolve(pipe)(pipe, options.get("runtime", "auto"), options.get("dtype"))
    grid = grids.of_call(model, schedule, num_inference_steps, None, None)(start.shape)
    embeds = options.get("prompt_embeds"), options.get("negative_prompt_embeds")
    texts = arguments.texts(len(start), prompt, negative_prompt, *embeds)
    begin = sampling(start, grid, texts, guidance_scale)
    outputs, nodes = [], [start]

    def keep(pipe: Any, step: int, t: int | float, tensors: dict[str, torch.Tensor]) -> None:
        outputs.append(tensors["output"].cpu())
        nodes.insert(0, tensors["latents"].cpu())

    watched = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ("latents", "output")}
    drawn = reconstruct(pipe, begin, output_type="latent", **watched, **options)
    end = drawn.latents.cpu()
    nodes[-1] = start.to(end.dtype)
    exact = replace(begin, init_latents=end, method=DDIM(), stats=drawn.stats)
    return Recording(start, end, torch.stack(outputs), torch.stack(nodes), grid, exact)


def sampling(
    noise: torch.Tensor, grid: Schedule, texts: tuple[list[str] | None, list[str] | None], guidance: float
) -> Inversion:
    """What `reconstruct` needs to sample from noise that no inversion found."""
    return Inversion(
        latents=noise,
        init_latents=torch.zeros_like(noise),
        state={},
        schedule=grid,
        method=Recorded(),
        node=grid.num_steps,
        prompt=texts[0],
        negative_prompt=texts[1],
        guidance_scale=guidance,
        stats=None,
    )
