"""The protocol of an executor, and the one that calls the stepper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from invfast.counts import Counted, Counts
from invfast.schedule import Step

if TYPE_CHECKING:
    from invfast.methods.base import Predict, State, Stepper


class Executor(Protocol):
    """Takes a stepper's steps, and counts what they ask of the network."""

    stepper: Stepper
    dtype: torch.dtype
    """The network's."""
    captured: bool
    """Whether its steps are CUDA graphs."""

    counts: Counts
    """Since the run began; what was run to warm up is among them."""

    def __call__(self, step: Step, state: State) -> tuple[State, torch.Tensor | None]:
        """What `Stepper.step` returns; the state may lie in memory that the next call overwrites."""


class Plain(Counted):
    """Calls the stepper."""

    captured = False

    def __init__(self, stepper: Stepper, predict: Predict) -> None:
        self.stepper, self.predict, self.dtype = stepper, predict, predict.dtype

    @property
    def counts(self) -> Counts:
        return self.predict.counts

    def __call__(self, step: Step, state: State) -> tuple[State, torch.Tensor | None]:
        return self.stepper.step(step, state, self.predict)
