"""EasyInv (arXiv 2408.05159), both variants of its code, for epsilon and the rest."""

from __future__ import annotations

import torch

from invfast.reference.ddim import Grid, Model, noised_up, split


def invert_after(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    eta: float,
    start: float,
    length: float,
) -> torch.Tensor:
    """The result of a step is blended with the latent of the step before."""
    n, last = len(grid), x
    for i, (t, abar_source, abar_target) in enumerate(grid):
        _, noise = split(model(x, t), x, abar_target, prediction_type)
        x = noised_up(x, noise, abar_source, abar_target)
        if i > 0 and start * n + 1e-9 < i < (start + length) * n - 1e-9:
            x = eta * x + (1 - eta) * last
        last = x
    return x


def invert_before(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    eta: float,
    start: float,
    length: float,
) -> torch.Tensor:
    """The latent is blended after the noise was predicted from it and before the step."""
    n, last = len(grid), x
    for i, (t, abar_source, abar_target) in enumerate(grid):
        _, noise = split(model(x, t), x, abar_target, prediction_type)
        if i > 0 and start * n + 1e-9 < i < (start + length) * n - 1e-9:
            x = eta * x + (1 - eta) * last
        last = x
        x = noised_up(x, noise, abar_source, abar_target)
    return x
