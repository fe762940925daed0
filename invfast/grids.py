"""The grid of a call, and what of a pipeline's own sampler it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invfast.schedule import Schedule
from invfast.warned import warn

SAMPLED_BY_DDIM = {"DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"}
LEFT_OUT = ("clip_sample", "thresholding")
"""What changes predicted samples so that no step can be undone."""

_told: set[str] = set()
"""Warnings that were given: once each in a process."""


def of_call(scheduler: Any, schedule: Schedule | None, steps: int, timesteps: Sequence[int] | None) -> Schedule:
    """The caller's grid, or DDIM's over a pipeline's betas; where its own sampler is another, that is warned of once.

    Raises:
        TypeError: `schedule` is none.
        ValueError: both a schedule and times, a prediction type that is not the scheduler's; or see `from_scheduler`.
    """
    if schedule is None:
        _tell(scheduler)
        return Schedule.from_scheduler(scheduler, steps, timesteps=timesteps)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be an invfast.Schedule, got {type(schedule).__name__}")
    if timesteps is not None:
        raise ValueError("pass schedule or timesteps, not both")
    check_prediction(scheduler, schedule)
    return schedule


def check_prediction(scheduler: Any, schedule: Schedule) -> None:
    """Raises ValueError where a grid is for networks that predict something else."""
    own = scheduler.config.get("prediction_type", "epsilon")
    if own != schedule.prediction_type:
        raise ValueError(f"the pipeline's network predicts {own!r}, the schedule is for {schedule.prediction_type!r}")


def _learns(scheduler: Any) -> bool:
    """Whether the network predicts variances too: DeepFloyd's pipeline hands them to a scheduler that says so."""
    return str(scheduler.config.get("variance_type")).startswith("learned")


def _tell(scheduler: Any) -> None:
    name, said = type(scheduler).__name__, []
    if name not in SAMPLED_BY_DDIM:
        said.append(
            f"the pipeline samples by {name}; inversion and reconstruct() follow DDIM over its betas, and the "
            "pipeline's own call regenerates the image with DDIMScheduler.from_config(pipe.scheduler.config)"
            + (", and its register_to_config(variance_type='fixed_small')" if _learns(scheduler) else "")
        )
    said += [
        f"{name} has {option}, which changes samples so that no step can be undone; it is left out here, and the "
        f"pipeline's own call regenerates the image with {option}=False"
        for option in LEFT_OUT
        if scheduler.config.get(option)
    ]
    for message in said:
        if message not in _told:
            _told.add(message)
            warn(message)
