"""The grid of a call, and what of a pipeline's own sampler it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from invfast import flows
from invfast.schedule import FLOW, Schedule
from invfast.warned import warn

if TYPE_CHECKING:
    from invfast.adapters import Adapter

FOLLOWED = {"DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "FlowMatchEulerDiscreteScheduler"}
"""Whose steps are the ones taken here."""
LEFT_OUT = ("clip_sample", "thresholding", "stochastic_sampling")
"""What changes samples so that no step can be undone."""

_told: set[str] = set()
"""Warnings that were given: once each in a process."""

Shape = tuple[int, int, int, int]
NOMINAL: Shape = (1, 4, 64, 64)
"""Of latents, for a grid that is only tried out."""


def of_call(
    model: Adapter,
    schedule: Schedule | None,
    steps: int,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
    strength: float = 1.0,
    sampler: str | None = None,
) -> Callable[[Shape], Schedule]:
    """Latents' shape -> the caller's grid, or DDIM's over a pipeline's betas, or that of its rectified flow; that of
    `sampler`, a scheduler of diffusers, where a method has one. As much of it as `strength` asks for.

    Where the pipeline's own sampler is another, that is warned of once.

    Raises:
        TypeError: `schedule` is none, or strength no number.
        ValueError: both a schedule and times, a prediction type that is not the scheduler's; or see
            `Schedule.from_scheduler` and `Schedule.cleaner`.
    """
    scheduler = model.pipe.scheduler
    if schedule is not None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be an invfast.Schedule, got {type(schedule).__name__}")
        if timesteps is not None or sigmas is not None:
            raise ValueError("pass one of schedule, timesteps and sigmas")
        check_prediction(scheduler, schedule)
        part = schedule.cleaner(strength)
        return lambda shape: part
    _tell(scheduler, sampler)

    def own(shape: Shape) -> Schedule:
        if not flows.is_flow(scheduler) or timesteps is not None:
            given = {"timesteps": timesteps, "sigmas": sigmas}
        else:
            if sigmas is None:
                flows.check_steps(scheduler, steps)
            given = model.shifted(1 if sigmas is not None else steps, shape)
            given |= {} if sigmas is None else {"sigmas": sigmas}
        return Schedule.from_scheduler(scheduler, steps, sampler=sampler, **given).cleaner(strength)

    own(NOMINAL)  # what cannot be used is said before anything is run
    return own


def check_prediction(scheduler: Any, schedule: Schedule) -> None:
    """Raises ValueError where a grid is for networks that predict something else."""
    own = FLOW if flows.is_flow(scheduler) else scheduler.config.get("prediction_type", "epsilon")
    if own != schedule.prediction_type:
        raise ValueError(f"the pipeline's network predicts {own!r}, the schedule is for {schedule.prediction_type!r}")


def _learns(scheduler: Any) -> bool:
    """Whether the network predicts variances too: DeepFloyd's pipeline hands them to a scheduler that says so."""
    return str(scheduler.config.get("variance_type")).startswith("learned")


def _tell(scheduler: Any, sampler: str | None) -> None:
    name, said = type(scheduler).__name__, []
    if sampler and name != sampler:
        said.append(
            f"the pipeline samples by {name}; inversion and reconstruct() take the steps of {sampler}, and the "
            f"pipeline's own call regenerates the image with {sampler}.from_config(pipe.scheduler.config)"
        )
    elif name not in FOLLOWED | {sampler} and flows.is_flow(scheduler):
        said.append(
            f"the pipeline samples by {name}; inversion and reconstruct() take Euler's steps over its sigmas, and the "
            "pipeline's own call regenerates the image with FlowMatchEulerDiscreteScheduler() and "
            "sigmas=inversion.schedule.sigma.flip(0)[:-1].tolist()"
        )
    elif name not in FOLLOWED | {sampler}:
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
