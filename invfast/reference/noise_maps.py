"""Edit-friendly DDPM noise maps (arXiv 2304.06140), one node after the other, the last map kept."""

from __future__ import annotations

import math

import torch

from invfast.reference.ddim import Grid, Model, split


def invert(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    noise: torch.Tensor,
    eta: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_T, maps (B, N, C, h, w)), the latent of node i + 1 drawn with noise[:, i]."""
    path = [x]
    for i, (_, _, abar) in enumerate(grid):
        path.append(math.sqrt(abar) * x + math.sqrt(1 - abar) * noise[:, i])
    maps = []
    for i, (t, abar_source, abar_target) in enumerate(grid):
        mean, scale = _posterior(model, path[i + 1], t, abar_source, abar_target, prediction_type, eta)
        maps.append((path[i] - mean) / scale)
    return path[-1], torch.stack(maps, 1)


def sample(
    model: Model,
    x: torch.Tensor,
    maps: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    eta: float = 1.0,
) -> torch.Tensor:
    """Noise to data with given maps."""
    for i, (t, abar_source, abar_target) in reversed(list(enumerate(grid))):
        mean, scale = _posterior(model, x, t, abar_source, abar_target, prediction_type, eta)
        x = mean + scale * maps[:, i]
    return x


def _posterior(
    model: Model,
    x: torch.Tensor,
    t: int,
    abar_source: float,
    abar_target: float,
    prediction_type: str,
    eta: float,
) -> tuple[torch.Tensor, float]:
    """Mean and scale of DDIM's step with noise (Song et al., arXiv 2010.02502, eq. 12 and 16)."""
    clean, noise = split(model(x, t), x, abar_target, prediction_type)
    variance = eta**2 * (1 - abar_source) / (1 - abar_target) * (1 - abar_target / abar_source)
    mean = math.sqrt(abar_source) * clean + math.sqrt(max(1 - abar_source - variance, 0)) * noise
    return mean, math.sqrt(variance) or 1.0
