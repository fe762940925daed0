"""EDICT (arXiv 2211.12446), BDIA (arXiv 2307.10829) and O-BELM (arXiv 2410.07273), long-hand, both ways.

Grids are chains: the source level of a step is the target level of the one before.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from invfast.reference.ddim import Grid, Model, noised_up, split


def moved_down(x: torch.Tensor, noise: torch.Tensor, abar_source: float, abar_target: float) -> torch.Tensor:
    """DOWN: noised_up, the other way."""
    clean = (x - math.sqrt(1 - abar_target) * noise) / math.sqrt(abar_target)
    return math.sqrt(abar_source) * clean + math.sqrt(1 - abar_source) * noise


def edict_invert(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    p: float = 0.93,
    alternate: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_T, y_T)."""
    pair = {"x": x, "y": x}
    for i, (t, abar_source, abar_target) in enumerate(grid):
        pair["y"] = (pair["y"] - (1 - p) * pair["x"]) / p
        pair["x"] = (pair["x"] - (1 - p) * pair["y"]) / p
        for name, other in _order(len(grid), i, alternate)[::-1]:
            _, noise = split(model(pair[other], t), pair[other], abar_target, prediction_type)
            pair[name] = noised_up(pair[name], noise, abar_source, abar_target)
    return pair["x"], pair["y"]


def edict_sample(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    p: float = 0.93,
    alternate: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_0, y_0)."""
    pair = {"x": x, "y": y}
    for i, (t, abar_source, abar_target) in reversed(list(enumerate(grid))):
        for name, other in _order(len(grid), i, alternate):
            _, noise = split(model(pair[other], t), pair[other], abar_target, prediction_type)
            pair[name] = moved_down(pair[name], noise, abar_source, abar_target)
        pair["x"] = p * pair["x"] + (1 - p) * pair["y"]
        pair["y"] = p * pair["y"] + (1 - p) * pair["x"]
    return pair["x"], pair["y"]


def _order(steps: int, i: int, alternate: bool) -> list[tuple[str, str]]:
    """Who is moved first when sampling, each with the noise at the other: x in the first step, then in turns, if so."""
    turns = [("x", "y"), ("y", "x")]
    return turns[::-1] if alternate and (steps - 1 - i) % 2 else turns


def bdia_invert(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    gamma: float = 1.0,
    first_t: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_T, x_{T-1}); the first step asks at its target's time, or at its own, `first_t`."""
    before, x = x, _first(model, x, grid, prediction_type, first_t)
    for (t, abar_below, abar), (_, _, abar_above) in pairwise(grid):
        _, noise = split(model(x, t), x, abar, prediction_type)
        down, up = moved_down(x, noise, abar_below, abar), noised_up(x, noise, abar, abar_above)
        before, x = x, (before - down + gamma * up) / gamma
    return x, before


def bdia_sample(
    model: Model,
    x: torch.Tensor,
    before: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    gamma: float = 1.0,
) -> torch.Tensor:
    """x_0."""
    for (t, abar_below, abar), (_, _, abar_above) in reversed(list(pairwise(grid))):
        _, noise = split(model(before, t), before, abar, prediction_type)
        down, up = moved_down(before, noise, abar_below, abar), noised_up(before, noise, abar, abar_above)
        x, before = before, gamma * x + down - gamma * up
    return before


def obelm_invert(
    model: Model, x: torch.Tensor, grid: Grid, prediction_type: str = "epsilon", *, first_t: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_T, x_{T-1}); `first_t` as of BDIA."""
    before, x = x, _first(model, x, grid, prediction_type, first_t)
    for (t, abar_below, abar), (_, _, abar_above) in pairwise(grid):
        _, noise = split(model(x, t), x, abar, prediction_type)
        h, h_next = _ratio(abar) - _ratio(abar_below), _ratio(abar_above) - _ratio(abar)
        a_below, a, a_above = math.sqrt(abar_below), math.sqrt(abar), math.sqrt(abar_above)
        new = h_next**2 / h**2 * a_above / a_below * before
        new = new + (h**2 - h_next**2) / h**2 * a_above / a * x
        before, x = x, new + h_next * (h + h_next) / h * a_above * noise
    return x, before


def obelm_sample(
    model: Model, x: torch.Tensor, before: torch.Tensor, grid: Grid, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """x_0."""
    for (t, abar_below, abar), (_, _, abar_above) in reversed(list(pairwise(grid))):
        _, noise = split(model(before, t), before, abar, prediction_type)
        h, h_next = _ratio(abar_above) - _ratio(abar), _ratio(abar) - _ratio(abar_below)
        a_below, a, a_above = math.sqrt(abar_below), math.sqrt(abar), math.sqrt(abar_above)
        new = h_next**2 / h**2 * a_below / a_above * x
        new = new + (h**2 - h_next**2) / h**2 * a_below / a * before
        x, before = before, new - h_next * (h + h_next) / h * a_below * noise
    return before


def _ratio(abar: float) -> float:
    return math.sqrt(1 - abar) / math.sqrt(abar)


def _first(model: Model, x: torch.Tensor, grid: Grid, prediction_type: str, first_t: int | None = None) -> torch.Tensor:
    """DDIM inversion's first step, which gives the two-step formulas their second latent."""
    t, abar_source, abar_target = grid[0]
    if first_t is None:
        _, noise = split(model(x, t), x, abar_target, prediction_type)
    else:
        _, noise = split(model(x, first_t), x, abar_source, prediction_type)
    return noised_up(x, noise, abar_source, abar_target)
