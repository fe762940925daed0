"""DDIM, both ways, from predicted x_0 and predicted noise (Song et al., arXiv 2010.02502, eq. 12)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Model = Callable[[torch.Tensor, int], torch.Tensor]
Grid = list[tuple[int, float, float]]


def split(
    output: torch.Tensor, x: torch.Tensor, abar: float, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_0, noise) that a network's output at x, level abar, stands for."""
    alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
    if prediction_type == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction_type == "v_prediction":
        return alpha * x - sigma * output, sigma * x + alpha * output
    return output, (x - alpha * output) / sigma


def noised_up(x: torch.Tensor, noise: torch.Tensor, abar_source: float, abar_target: float) -> torch.Tensor:
    """UP: the latent at the target level with the same noise as at the source."""
    clean = (x - math.sqrt(1 - abar_source) * noise) / math.sqrt(abar_source)
    return math.sqrt(abar_target) * clean + math.sqrt(1 - abar_target) * noise


def sample(model: Model, x: torch.Tensor, grid: Grid, prediction_type: str = "epsilon") -> torch.Tensor:
    """Noise to data."""
    for t, abar_source, abar_target in reversed(grid):
        clean, noise = split(model(x, t), x, abar_target, prediction_type)
        x = math.sqrt(abar_source) * clean + math.sqrt(1 - abar_source) * noise
    return x


def invert(model: Model, x: torch.Tensor, grid: Grid, prediction_type: str = "epsilon") -> torch.Tensor:
    """Data to noise, the noise predicted from the source latent at the target's time and level."""
    for t, abar_source, abar_target in grid:
        _, noise = split(model(x, t), x, abar_target, prediction_type)
        x = noised_up(x, noise, abar_source, abar_target)
    return x


def invert_from_source(
    model: Model, x: torch.Tensor, grid: Grid, prediction_type: str = "epsilon", *, first_t: int
) -> torch.Tensor:
    """Data to noise, the noise predicted at each step's own latent, time and level; `first_t` is the data's time."""
    for t, abar_source, abar_target in grid:
        _, noise = split(model(x, first_t), x, abar_source, prediction_type)
        x, first_t = noised_up(x, noise, abar_source, abar_target), t
    return x
