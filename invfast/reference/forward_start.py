"""The forward-diffusion start of "There and Back Again" (arXiv 2410.23530)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from invfast.reference.ddim import Grid, Model


def invert(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    steps: int,
    noise: torch.Tensor,
    inner: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Jumps to the source level of step `steps`, then inverts the rest of the grid with `inner`."""
    abar = grid[steps][1]
    return inner(model, math.sqrt(abar) * x + math.sqrt(1 - abar) * noise, grid[steps:], prediction_type)
