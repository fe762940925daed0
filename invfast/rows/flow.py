"""Rows of the methods made for rectified flow: h is the length of a step in sigma, v a velocity from anywhere."""

from __future__ import annotations

import torch

from invfast.rows.base import as_table, levels
from invfast.schedule import Schedule


def along(schedule: Schedule, share: float = 1.0) -> torch.Tensor:
    """A share of each step of a flow with a velocity from anywhere, (N, 1, 2): (x, v) -> x + share h v."""
    h = share * schedule.sigma.diff()
    return as_table((torch.ones_like(h), h))


def beyond(schedule: Schedule, direction: int) -> torch.Tensor:
    """A step of a flow, up (1) or down (-1), and half the next with its velocity, (N, 2, 2): (x, v) -> (x', m')."""
    h = schedule.sigma.diff()
    following = h.roll(-direction)
    following[-1 if direction > 0 else 0] = 0  # nothing comes after
    return torch.cat([along(schedule, direction), as_table((torch.ones_like(h), direction * (h + following / 2)))], 1)


def pulled_up(schedule: Schedule, gamma: float) -> torch.Tensor:
    """RF-Inversion's controlled step to noise, (N, 1, 3): inputs (x, noise, o(x)) at the source."""
    h, (alpha, _) = schedule.sigma.diff(), levels(schedule)[0]
    pull = gamma * h / alpha
    return as_table((1 - pull, pull, (1 - gamma) * h))


def pulled_down(schedule: Schedule, eta: float, steps: int) -> torch.Tensor:
    """Its step to data, pulled in the `steps` nearest to noise, (N, 1, 3): inputs (x, x_0, o(x)) at the target."""
    h, (_, sigma) = schedule.sigma.diff(), levels(schedule)[1]
    eta = eta * (torch.arange(len(h)) >= len(h) - steps).double()
    pull = eta * h / sigma
    return as_table((1 - pull, pull, (eta - 1) * h))
