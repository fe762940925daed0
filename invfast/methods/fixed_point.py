"""Implicit inversion: x_b = f(x_b), f(y) = UP(x_a, eps(y, t_b)), iterated at every step.

Plain and averaged (AIDI_E) and Anderson-accelerated (AIDI_A) iteration: Pan et al., ICCV 2023. The warm start from the
noise of the step before is Uni-Inv (Jiao et al., UniEdit-Flow, arXiv 2504.13109); its extrapolation is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch

from invfast import rows
from invfast.methods.base import Method, Predict, Problem, State
from invfast.schedule import Step

MIXINGS = ("plain", "averaged", "anderson")
EXTRAPOLATIONS = {None: 0, "constant": 1, "linear": 2, "quadratic": 3}


@dataclass(frozen=True)
class FixedPoint(Method):
    """`iterations` evaluations a step (one more in the first step with a warm start).

    Args:
        iterations: evaluations a step at most, at least 1. One, cold and plain, is DDIM inversion.
        mixing: how the next iterate comes from the values f(y_k): "plain" the last one; "averaged" the mean of the
            last two; "anderson" the combination of the last `window` with the least residual, per image.
        warm_start: where a step begins: None at its own latent; "constant" at the step taken with the noise of the
            step before; "linear" or "quadratic" with the noise extrapolated over the last two or three steps.
        tolerance: an image whose |f(y) - y| / |f(y)| (L2) falls below it keeps that f(y) and is asked no more in this
            step; 0 spends all iterations.
        window: values Anderson combines, the newest included, 2 to 4.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 3
    mixing: str = "plain"
    warm_start: str | None = None
    tolerance: float = 0.0
    window: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, Integral) or self.iterations < 1:
            raise ValueError(f"FixedPoint iterations must be an integer of at least 1, got {self.iterations!r}")
        if self.mixing not in MIXINGS:
            raise ValueError(f"unknown FixedPoint mixing {self.mixing!r}; expected one of {MIXINGS}")
        if self.warm_start not in EXTRAPOLATIONS:
            raise ValueError(f"unknown warm_start {self.warm_start!r}; expected one of {tuple(EXTRAPOLATIONS)}")
        if not isinstance(self.tolerance, Real) or not 0 <= self.tolerance < 1:
            raise ValueError(f"FixedPoint tolerance must lie in [0, 1), got {self.tolerance!r}")
        if not isinstance(self.window, Integral) or not 2 <= self.window <= 4:
            raise ValueError(f"FixedPoint window must be 2, 3 or 4, got {self.window!r}")

    def inverter(self, problem: Problem, start: int = 0) -> Implicit:
        return Implicit(self, problem, start)


class Implicit:
    """The stepper of FixedPoint. Images that are done are masked, so that a batch equals its images."""

    keep = ()

    def __init__(self, method: FixedPoint, problem: Problem, start: int) -> None:
        schedule = problem.schedule
        self.method, self.kernels = method, problem.kernels
        self.steps = range(start, schedule.num_steps)
        up = rows.up(schedule)
        self.up = problem.place_guided(rows.with_residual(up) if method.mixing == "anderson" else up)
        self.mean = problem.place(torch.full((1, 1, 2), 0.5, dtype=torch.float64))
        self.order = EXTRAPOLATIONS[method.warm_start]
        if self.order:
            self.forecast = problem.place(rows.forecast(schedule, self.order, start))
            self.noise = problem.place_guided(rows.noise(schedule))
            self.network_predicts_noise = schedule.prediction_type == "epsilon" and problem.guidance_scale <= 1

    def init(self, state: State) -> State:
        return {"latents": state["latents"]}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor]:
        x = state["latents"]
        y = self._first(step, state, predict)
        found = _Found(x.shape[0], self.method.tolerance)
        values: list[torch.Tensor] = []
        residuals: list[torch.Tensor] = []
        for k in range(self.method.iterations):
            output = predict(y, step.t, found.open)
            f, *r, sums = self.kernels.lincomb_residual((x, y, *output), self.up, step.index, y)
            values = [*values, f][-self.method.window :]
            residuals = [*residuals, *r][-self.method.window :]
            mixed = self._mix(values, residuals)
            last = k == self.method.iterations - 1
            found.settle(f, mixed, y, output, sums, last)
            if found.open == []:
                break
            y = mixed
        return self._advance(step, state, found), found.sums

    def _first(self, step: Step, state: State, predict: Predict) -> torch.Tensor:
        """The iterate a step begins with."""
        x = state["latents"]
        if not self.order:
            return x
        if step.i == self.steps.start:  # no noise yet: one evaluation more, as Uni-Inv does
            return self.kernels.lincomb((x, x, *predict(x, step.t)), self.up, step.index)[0]
        history = [state.get(f"noise_{j}", x) for j in range(1, self.order + 1)]  # a missing one has weight zero
        return self.kernels.lincomb((x, *history), self.forecast, step.index)[0]

    def _mix(self, values: list[torch.Tensor], residuals: list[torch.Tensor]) -> torch.Tensor:
        if len(values) == 1 or self.method.mixing == "plain":
            return values[-1]
        if self.method.mixing == "averaged":
            return self.kernels.lincomb(values[-2:], self.mean, 0)[0]
        return self.kernels.anderson_mix(values, residuals)

    def _advance(self, step: Step, state: State, found: _Found) -> State:
        new = {"latents": found.latents}
        if self.order:
            new["noise_1"] = self._predicted_noise(step, found)
            new |= {f"noise_{j + 1}": state[f"noise_{j}"] for j in range(1, self.order) if f"noise_{j}" in state}
        return new

    def _predicted_noise(self, step: Step, found: _Found) -> torch.Tensor:
        if self.network_predicts_noise:
            return found.output[0]
        return self.kernels.lincomb((found.asked, *found.output), self.noise, step.index)[0]


class _Found:
    """What each image has settled on within one step."""

    def __init__(self, batch: int, tolerance: float) -> None:
        self.batch, self.tolerance = batch, tolerance
        self.open: list[int] | None = None  # images still iterating: None means all, [] that the step is over

    def settle(
        self,
        f: torch.Tensor,
        mixed: torch.Tensor,
        y: torch.Tensor,
        output: tuple[torch.Tensor, ...],
        sums: torch.Tensor,
        last: bool,
    ) -> None:
        """Takes an iteration's result for every open image; an image closes with f once its residual is small."""
        if not self.tolerance:
            self.latents, self.asked, self.output, self.sums = mixed, y, output, sums
            self.open = [] if last else None
            return
        small = sums[:, 0] < self.tolerance**2 * sums[:, 1]
        latents = torch.where(_per_sample(small, f), f, mixed)
        new = (latents, y, sums, *output)
        if self.open is not None:
            fresh = torch.zeros(self.batch, dtype=torch.bool, device=f.device)
            fresh[self.open] = True
            old = (self.latents, self.asked, self.sums, *self.output)
            new = tuple(torch.where(_per_sample(fresh, a), a, b) for a, b in zip(new, old, strict=True))
            small |= ~fresh
        self.latents, self.asked, self.sums, *self.output = new
        # The one place where the loop reads from the device, and only when a tolerance asks for it.
        self.open = [] if last else [j for j, done in enumerate(small.tolist()) if not done]


def _per_sample(flag: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return flag.reshape((-1,) + (1,) * (like.ndim - 1))
