"""Null-text inversion (arXiv 2211.09794), prompt tuning (arXiv 2305.04441), and sampling with what they found.

A model here is a callable (x, t, embedding) -> its own output; torch.optim.Adam and autograd search. Single images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from invfast.reference.ddim import Grid, split

Model = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]


def path(model: Model, x: torch.Tensor, grid: Grid, prediction_type: str, cond: torch.Tensor) -> list[torch.Tensor]:
    """DDIM inversion at guidance 1: the latents of all nodes, data first."""
    nodes = [x]
    for t, abar_source, abar_target in grid:
        _, noise = split(model(x, t, cond), x, abar_target, prediction_type)
        clean = (x - math.sqrt(1 - abar_source) * noise) / math.sqrt(abar_source)
        x = math.sqrt(abar_target) * clean + math.sqrt(1 - abar_target) * noise
        nodes.append(x)
    return nodes


def guided_step(
    model: Model,
    x: torch.Tensor,
    node: tuple[int, float, float],
    prediction_type: str,
    cond: torch.Tensor,
    uncond: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One step down under classifier-free guidance."""
    t, abar_source, abar_target = node
    without = model(x, t, uncond)
    output = without + scale * (model(x, t, cond) - without)
    clean, noise = split(output, x, abar_target, prediction_type)
    return math.sqrt(abar_source) * clean + math.sqrt(1 - abar_source) * noise


def tune(
    model: Model,
    nodes: list[torch.Tensor],
    grid: Grid,
    prediction_type: str,
    cond: torch.Tensor,
    uncond: torch.Tensor,
    *,
    which: str,
    scale: float,
    iterations: int = 10,
    learning_rate: float,
    tolerance: float = 1e-5,
    stop: str = "before",
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The tuned embeddings, data end first, and x_0; `which` is "cond" or "uncond".

    `stop` "after" takes an update whose loss was small, and stops then, the limit rising by 2e-5 a step.
    """
    x, found = nodes[-1], []
    for i, (node, wanted) in enumerate(zip(reversed(grid), reversed(nodes[:-1]), strict=True)):
        tuned = (cond if which == "cond" else uncond).clone().requires_grad_()
        both = (tuned, uncond) if which == "cond" else (cond, tuned)
        optimizer = torch.optim.Adam([tuned], lr=learning_rate * (1 - i / 100))
        for _ in range(iterations):
            loss = torch.nn.functional.mse_loss(guided_step(model, x, node, prediction_type, *both, scale), wanted)
            if stop == "before" and loss.item() < tolerance + 2 * tolerance * i:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stop == "after" and loss.item() < tolerance + 2e-5 * i:
                break
        x = guided_step(model, x, node, prediction_type, *both, scale).detach()
        tuned = tuned.detach()
        cond, uncond = (tuned, uncond) if which == "cond" else (cond, tuned)
        found.append(tuned)
    return found[::-1], x


def sample(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str,
    conds: list[torch.Tensor],
    unconds: list[torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Noise to data with embeddings of each step, data end first."""
    for node, cond, uncond in reversed(list(zip(grid, conds, unconds, strict=True))):
        x = guided_step(model, x, node, prediction_type, cond, uncond, scale)
    return x
