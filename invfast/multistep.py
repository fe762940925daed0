"""The grid of DPM-Solver++(2M), as diffusers' DPMSolverMultistepScheduler makes it of a scheduler's config.

Spacings, Karras' and other sigmas, the final level: all are the scheduler's own, of which a private copy is set and
read. What its steps would do otherwise than DPM-Solver++(2M) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler

from invfast.ambient import neutral
from invfast.flows import check_steps, is_flow

NAME = DPMSolverMultistepScheduler.__name__
SHORT = 15
"""Grids of fewer steps end on one of first order (lower_order_final)."""


@neutral()
def nodes(
    scheduler: Any, steps: int, timesteps: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Times (N + 1,) and alphas (N + 1,), float64, from data to noise, and words on where they come from; it is read.

    Args:
        scheduler: one of diffusers with a table of alphas_cumprod, of any class.
        steps: N, where no times are given.
        timesteps: explicit ones, in any order.

    Raises:
        TypeError: `steps` or a timestep is no integer.
        ValueError: out of range, a config of other steps, or a grid that asks the network twice at one time.
    """
    own = DPMSolverMultistepScheduler.from_config(scheduler.config)
    check(own, steps if timesteps is None else len(timesteps))
    if timesteps is None:
        check_steps(own, steps)
        own.set_timesteps(int(steps), device="cpu")
    else:
        own.set_timesteps(timesteps=sorted(map(int, timesteps), reverse=True), device="cpu")
    times, sigma = own.timesteps.flip(0), own.sigmas.double().flip(0)
    if not bool((times.diff() > 0).all()):
        raise ValueError(
            f"{len(times)} steps of {NAME} ask the network twice at one time, t={times.tolist()}; use fewer steps"
        )
    origin = {
        "scheduler": type(scheduler).__name__,
        "timestep_spacing": "explicit" if timesteps is not None else own.config.timestep_spacing,
        "grid": f"diffusers {NAME}",
        "timesteps": times.tolist(),
    }
    return torch.cat([times[:1].clamp(max=0), times]), (1 + sigma**2).rsqrt(), origin


def check(scheduler: Any, steps: int) -> None:
    """Raises ValueError where a scheduler's steps are not those of DPM-Solver++(2M)."""
    found = list(_otherwise(scheduler.config, steps))
    if found:
        raise ValueError(f"DPMSolver undoes DPM-Solver++(2M), and the scheduler {NAME} has {', '.join(found)}")


def _otherwise(config: Mapping[str, Any], steps: int) -> Iterator[str]:
    wanted = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "thresholding": False}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            yield f"{name}={config[name]!r}: set it to {value!r}"
    if config.get("final_sigmas_type", "zero") == "zero":  # then its last step is of first order anyway
        return
    if config.get("euler_at_final") and steps >= SHORT:
        yield "euler_at_final=True: set it to False"
    if not config.get("lower_order_final", True) and not config.get("euler_at_final") and steps < SHORT:
        yield f"lower_order_final=False on fewer than {SHORT} steps: set it to True"


def check_flow(scheduler: Any, steps: int) -> None:
    """Raises ValueError where a flow's grid is not this sampler's, or its steps are not."""
    if not is_flow(scheduler):
        return
    if type(scheduler).__name__ != NAME:
        raise ValueError(
            f"DPMSolver takes the steps of {NAME}, and the pipeline samples by {type(scheduler).__name__}; give it "
            f"{NAME}.from_config(pipe.scheduler.config, use_flow_sigmas=True, prediction_type='flow_prediction', "
            "flow_shift=...), or pass schedule="
        )
    check(scheduler, steps)
