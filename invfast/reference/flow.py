"""Rectified flow long-hand, x = (1 - sigma) data + sigma noise, dx/dsigma = v(x, sigma): one way up and one down each.

`model` is (x, sigma) -> v. `sigmas` ascend from data to noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

Velocity = Callable[[torch.Tensor, float], torch.Tensor]


def euler_invert(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Asked at the source's time."""
    for low, high in pairwise(sigmas):
        x = x + (high - low) * model(x, low)
    return x


def implicit_invert(
    model: Velocity,
    x: torch.Tensor,
    sigmas: Sequence[float],
    iterations: int = 1,
    warm: bool = False,
    first_at_source: bool = False,
) -> torch.Tensor:
    """Asked at the target's time, `iterations` times; warm, each step begins with the velocity of the last (Uni-Inv,
    arXiv 2504.13109), the first with one more evaluation, at its target's time or its source's.
    """
    velocity = None
    for low, high in pairwise(sigmas):
        y = x
        if warm:
            y = x + (high - low) * (model(x, low if first_at_source else high) if velocity is None else velocity)
        for _ in range(iterations):
            velocity = model(y, high)
            y = x + (high - low) * velocity
        x = y
    return x


def euler_sample(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    for low, high in reversed(list(pairwise(sigmas))):
        x = x - (high - low) * model(x, high)
    return x


def rf_solver_invert(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """arXiv 2411.04746: a Taylor step of second order, its derivative a finite difference over half a step."""
    for low, high in pairwise(sigmas):
        x = _taylor(model, x, low, high)
    return x


def rf_solver_sample(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    for low, high in reversed(list(pairwise(sigmas))):
        x = _taylor(model, x, high, low)
    return x


def _taylor(model: Velocity, x: torch.Tensor, here: float, there: float) -> torch.Tensor:
    h = there - here
    first = model(x, here)
    derivative = (model(x + h / 2 * first, here + h / 2) - first) / (h / 2)
    return x + h * first + h**2 / 2 * derivative


def fireflow_invert(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """arXiv 2412.07517, algorithm 1."""
    return _reusing(model, x, list(sigmas))


def fireflow_sample(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    return _reusing(model, x, list(sigmas)[::-1])


def _reusing(model: Velocity, x: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    before = model(x, sigmas[0])
    for here, there in pairwise(sigmas):
        before = model(x + (there - here) / 2 * before, (here + there) / 2)
        x = x + (there - here) * before
    return x


def rf_inversion_invert(
    model: Velocity, x: torch.Tensor, sigmas: Sequence[float], noise: torch.Tensor, gamma: float = 0.5
) -> torch.Tensor:
    """arXiv 2410.10792, equation 8."""
    for low, high in pairwise(sigmas):
        v = model(x, low)
        x = x + (high - low) * (v + gamma * ((noise - x) / (1 - low) - v))
    return x


def rf_inversion_sample(
    model: Velocity, x: torch.Tensor, sigmas: Sequence[float], image: torch.Tensor, eta: float, steps: int
) -> torch.Tensor:
    """Equation 15: in the first `steps` the way is bent towards the image."""
    for k, (low, high) in enumerate(reversed(list(pairwise(sigmas)))):
        v = model(x, high)
        if k < steps:
            v = v + eta * ((x - image) / high - v)
        x = x - (high - low) * v
    return x


def edict_invert(model: Velocity, x: torch.Tensor, sigmas: Sequence[float], p: float) -> torch.Tensor:
    """x_T of EDICT (arXiv 2211.12446) with Euler's steps."""
    pair, total = [x, x], len(sigmas) - 1
    for i, (low, high) in enumerate(pairwise(sigmas)):
        pair[1] = (pair[1] - (1 - p) * pair[0]) / p
        pair[0] = (pair[0] - (1 - p) * pair[1]) / p
        leads = (total - 1 - i) % 2  # moved first when sampling, last here
        for own in (1 - leads, leads):
            pair[own] = pair[own] + (high - low) * model(pair[1 - own], high)
    return pair[0]


def bdia_invert(model: Velocity, x: torch.Tensor, sigmas: Sequence[float], gamma: float) -> torch.Tensor:
    """BDIA (arXiv 2307.10829): gamma x_{i+1} = x_{i-1} - DOWN(x_i) + gamma UP(x_i)."""
    before, x = x, x + (sigmas[1] - sigmas[0]) * model(x, sigmas[1])
    for below, here, above in zip(sigmas, sigmas[1:], sigmas[2:], strict=False):
        v = model(x, here)
        down, up = x + (below - here) * v, x + (above - here) * v
        before, x = x, (before - down + gamma * up) / gamma
    return x


def obelm_invert(model: Velocity, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """O-BELM (arXiv 2410.07273) in sigma: the explicit two-step formula of least error."""
    before, x = x, x + (sigmas[1] - sigmas[0]) * model(x, sigmas[1])
    for below, here, above in zip(sigmas, sigmas[1:], sigmas[2:], strict=False):
        h, following = here - below, above - here
        ratio = (following / h) ** 2
        new = ratio * before + (1 - ratio) * x + following * (h + following) / h * model(x, here)
        before, x = x, new
    return x
