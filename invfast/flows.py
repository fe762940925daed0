"""Grids of rectified flow, x = (1 - sigma) data + sigma noise, as a pipeline's own scheduler makes them.

Esser et al., arXiv 2403.03206. Shifts, stretches and other spacings are the scheduler's: a private copy of it is set to
the number of steps the way its pipeline does it, and its sigmas are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

from invfast.ambient import neutral


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is for networks that predict velocities of a rectified flow."""
    config = getattr(scheduler, "config", None) or {}
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def takes_sigmas(scheduler: Any) -> bool:
    """Whether `set_timesteps` of a scheduler takes explicit sigmas."""
    return "sigmas" in inspect.signature(scheduler.set_timesteps).parameters


@neutral()
def nodes(
    scheduler: Any, steps: int, sigmas: Sequence[float] | None, mu: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Times, float32, and sigmas, float64, of a scheduler's grid from data to noise, (N + 1,) each; it is only read.

    Args:
        scheduler: of rectified flow.
        steps: N, where no sigmas are given.
        sigmas: explicit ones, which it shifts like its own.
        mu: by how much, where that depends on the image.

    Raises:
        TypeError: `steps` is no integer, or `sigmas` are no sequence of numbers.
        ValueError: sigmas outside (0, 1] or not monotonic, a scheduler that does not take them, or one that runs from
            noise at 0 to data at 1.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("invert_sigmas"):
        raise ValueError(
            f"scheduler {name} has invert_sigmas=True, which runs time backwards (Mochi's convention); no pipeline "
            "that can be inverted needs it: make it anew with invert_sigmas=False"
        )
    if config.get("use_dynamic_shifting") and mu is None:
        raise ValueError(
            f"scheduler {name} shifts by the image's size (use_dynamic_shifting); pass mu, as its pipeline does"
        )
    own = type(scheduler).from_config(config)
    if hasattr(scheduler, "shift") and hasattr(own, "set_shift"):
        own.set_shift(scheduler.shift)  # a caller may have changed it after it was made
    if sigmas is not None:
        if not takes_sigmas(scheduler):
            raise ValueError(f"scheduler {name} takes no sigmas; pass num_inference_steps, or use another scheduler")
        levels = explicit(sigmas)
        steps, given = len(levels), {"sigmas": levels}
    else:
        check_steps(scheduler, steps)
        given = {}
    if mu is not None and config.get("use_dynamic_shifting"):
        given["mu"] = mu
    own.set_timesteps(int(steps), device="cpu", **given)
    found = own.sigmas.double().cpu()
    times, levels = own.timesteps.float().cpu(), found[: len(own.timesteps)]
    once = torch.cat([torch.ones(1, dtype=torch.bool), levels.diff() != 0])  # Heun's visits each node twice
    times, levels = times[once].flip(0), torch.cat([levels[once], found[-1:]]).flip(0)
    return torch.cat([levels[:1].float() * config.get("num_train_timesteps", 1000), times]), levels


def explicit(sigmas: Sequence[float]) -> list[float]:
    """A caller's sigmas from noise to data, as schedulers want them."""
    values = sigmas.tolist() if hasattr(sigmas, "tolist") else sigmas
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(s, Real) for s in values):
        raise TypeError(f"sigmas must be a sequence of numbers, got {sigmas!r}")
    values = [float(s) for s in values]
    if not values or not all(0 < s <= 1 for s in values):
        raise ValueError(f"sigmas must be at least one number in (0, 1], without the last 0, got {values}")
    if values not in (sorted(set(values)), sorted(set(values), reverse=True)):
        raise ValueError(f"sigmas must be strictly monotonic (diffusers' order is descending), got {values}")
    return sorted(values, reverse=True)


def check_steps(scheduler: Any, steps: int) -> None:
    """Raises TypeError or ValueError where a scheduler cannot be set to so many steps."""
    most = scheduler.config.get("num_train_timesteps", 1000)
    if not isinstance(steps, Integral) or isinstance(steps, bool):
        raise TypeError(f"num_inference_steps must be an integer from 1 to {most}, got {steps!r}")
    if not 1 <= steps <= most:
        raise ValueError(f"num_inference_steps must be from 1 to {most}, got {steps}")
