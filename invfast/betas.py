"""DDIM's grid over the betas of a diffusers scheduler: which times it visits, and the levels of signal there.

Song et al., arXiv 2010.02502; spacings: Lin et al., arXiv 2305.08891, table 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from diffusers import DDIMScheduler

ROUNDING = torch.finfo(torch.float32).eps
"""Levels no farther apart than this are one: what they differ by is rounding."""


def nodes(
    scheduler: Any, steps: int, timesteps: Sequence[int] | None, compat: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any], int]:
    """Times (N + 1,), alphas (N + 1,), those of each step's source (N,), words on where they come from, and how many
    steps before the first move nothing and are left out.

    As `Schedule.from_scheduler`, which says what is raised.
    """
    table, rounding = _alphas_cumprod(scheduler)
    config = scheduler.config
    if timesteps is None:
        times = _spaced(config, len(table), steps)
        stride = len(table) // steps
    else:
        times, stride = _explicit(timesteps, len(table)), len(table)  # the last sampling step goes to the end
        if compat:
            raise ValueError("compat='diffusers' has no explicit timesteps: DDIMScheduler takes a number of steps")
    final = 1.0 if config.get("set_alpha_to_one", True) else float(table[0])
    origins = [t - stride for t in times] if compat else [times[0] - stride, *times[:-1]]
    alpha, source = (
        torch.tensor([float(table[t]) if t >= 0 else final for t in each], dtype=torch.float64).sqrt()
        for each in (times, origins)
    )
    keep = _moving(source**2, alpha**2, rounding, chained=not compat)
    if not keep:
        raise ValueError(f"the grid visits t={times} only, the data level itself: nothing to invert; use more steps")
    origin = {
        "scheduler": type(scheduler).__name__,
        "timestep_spacing": "explicit" if timesteps is not None else config.get("timestep_spacing", "leading"),
        "grid": "DDIM" if compat is None else "diffusers DDIMInverseScheduler",
        "timesteps": times,
    }
    visited = torch.tensor([min(0, times[0])] + [times[i] for i in keep])
    return visited, torch.cat([source[keep[:1]], alpha[keep]]), source[keep], origin, keep[0]


def _alphas_cumprod(scheduler: Any) -> tuple[torch.Tensor, float]:
    """The table in float64, and what its own dtype rounds by."""
    table, name = getattr(scheduler, "alphas_cumprod", None), type(scheduler).__name__
    if not isinstance(table, torch.Tensor) or table.ndim != 1:
        raise ValueError(
            f"scheduler {name} has no table of alphas_cumprod and is none of rectified flow; pass "
            "schedule=Schedule(t=..., alpha=...) built from its sigmas (alpha = 1 / sqrt(1 + sigma^2) where data keep "
            "their size and noise is added)"
        )
    if not table.is_floating_point() or not bool(((table >= 0) & (table <= 1)).all()):
        raise ValueError(
            f"alphas_cumprod of scheduler {name} must be floats in [0, 1], got {table.dtype}"
            + (" with others, or non-finite ones" if table.is_floating_point() else "")
            + "; make the scheduler anew from its config"
        )
    return table.detach().double().cpu(), max(ROUNDING, torch.finfo(table.dtype).eps)


def _spaced(config: Mapping[str, Any], train_steps: int, steps: int) -> list[int]:
    """Ascending times of DDIMScheduler's grid."""
    if not isinstance(steps, Integral) or isinstance(steps, bool):
        raise TypeError(f"num_inference_steps must be an integer from 1 to {train_steps}, got {steps!r}")
    if not 1 <= steps <= train_steps:
        raise ValueError(f"num_inference_steps must be from 1 to {train_steps}, got {steps}")
    grid = DDIMScheduler(
        num_train_timesteps=train_steps,
        timestep_spacing=config.get("timestep_spacing", "leading"),
        steps_offset=config.get("steps_offset", 0),
    )
    grid.set_timesteps(int(steps))
    times = grid.timesteps.tolist()[::-1]
    if times[-1] >= train_steps:
        raise ValueError(
            f"num_inference_steps={steps} with steps_offset={grid.config.steps_offset} visits t={times[-1]}, "
            f"but the last trained time is {train_steps - 1}; use fewer steps"
        )
    return times


def _explicit(timesteps: Sequence[int], train_steps: int) -> list[int]:
    times = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    if not isinstance(times, Sequence) or isinstance(times, str):
        raise TypeError(f"timesteps must be a sequence of integers, got {timesteps!r}")
    times = list(times)
    if not times:
        raise ValueError("timesteps is empty; expected at least one time")
    for t in times:
        if not isinstance(t, Integral) or isinstance(t, bool):
            raise TypeError(f"timesteps must be integers, got {t!r}")
        if not 0 <= t < train_steps:
            raise ValueError(f"timesteps must lie in 0..{train_steps - 1}, got {t}")
    if times not in (sorted(times), sorted(times, reverse=True)):
        raise ValueError(f"timesteps must be monotonic (diffusers' order is descending), got {times}")
    return [int(t) for t in sorted(times)]


def _moving(source: torch.Tensor, abar: torch.Tensor, rounding: float, chained: bool) -> list[int]:
    """Indices of the steps that go anywhere; in a chain a repeated level, up to its rounding, repeats its node."""
    kept, last = [], float(source[0])
    for i, (a, b) in enumerate(zip(source.tolist(), abar.tolist(), strict=True)):
        start = last if chained else a
        if abs(start - b) > 2 * rounding * start:
            kept.append(i)
            last = b
    return kept
