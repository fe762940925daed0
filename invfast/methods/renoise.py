"""ReNoise: the fixed-point iteration of a step with its noises averaged over a window, and made to look like noise.

    y_0 = x_a,   y_{k+1} = UP(x_a, e_k),   e_k = eps(y_k, t_b),   k = 0 .. K;     x_b = UP(x_a, mean of e_k in a window)

Garibi et al., "ReNoise: Real Image Inversion Through Iterative Noising", ECCV 2024 (arXiv 2403.14602), algorithm 1 and
its code. The window is 0 <= k < 5 where t < 250 and 8 <= k < 10 elsewhere; where k never gets there the last iterate is
the result. From the window's start on, each noise and the mean pass through `Whitener`, whose reference is the noise
predicted at forward-diffused data. UP is affine in the noise, so the mean is taken over the iterates, and a
regularised noise e' moves an iterate by q (e' - e), whatever the network predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from invfast import rows
from invfast.methods.base import Method, Predict, Problem, State, Stepper, check_choice
from invfast.methods.whiten import SHIFTS, Whitener, draws
from invfast.schedule import Step

EARLY = 250
"""Times below it take the early window; in the unit of 1000 trained steps, as published."""


@dataclass(frozen=True)
class ReNoise(Method):
    """At most K + 1 evaluations a step, one more with regularisation; none beyond the end of its window.

    Args:
        iterations: K, at least 1. 1 is published for 50 steps of Stable Diffusion, 9 for 4 of a turbo model.
        lambda_kl: strength of the regularisation towards normal patches, at least 0.
        lambda_ac: of that towards no autocorrelation, at least 0; both 0 switch regularisation off.
        early_window: (first, end) of the iterations that are averaged, for t < 250.
        late_window: the same for the other steps.
        average: whether the window is averaged; else the last iterate is the result, and all noises but the first pass
            through the regularisation wherever the window begins.
        first_iterations: K for t < 250 at most, as the published code caps it (at 5); None leaves it at K.
        shifts: those of the autocorrelation, "shared" by all channels and from 1 on, or as published one a "channel"
            and from 0 on, which compares a plane with itself and shrinks it.
        seed: image j of a batch draws the noise of its reference from a generator of seed + j, unless `invert` is
            given generators; the default is the published one, and not the one that ForwardStart draws with.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 1
    lambda_kl: float = 0.065
    lambda_ac: float = 20.0
    early_window: Sequence[int] = (0, 5)
    late_window: Sequence[int] = (8, 10)
    seed: int = 7865
    average: bool = True
    first_iterations: int | None = None
    shifts: str = "shared"

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, Integral) or self.iterations < 1:
            raise ValueError(f"ReNoise iterations must be an integer of at least 1, got {self.iterations!r}")
        cap = self.first_iterations
        if cap is not None and (not isinstance(cap, Integral) or cap < 1):
            raise ValueError(f"ReNoise first_iterations must be None or an integer of at least 1, got {cap!r}")
        check_choice("ReNoise average", self.average, (True, False))
        check_choice("ReNoise shifts", self.shifts, SHIFTS)
        for name in ("lambda_kl", "lambda_ac"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value < float("inf"):
                raise ValueError(f"ReNoise {name} must be a finite number of at least 0, got {value!r}")
        for name in ("early_window", "late_window"):
            value = getattr(self, name)
            if (
                not isinstance(value, Sequence)
                or len(value) != 2
                or not all(isinstance(k, Integral) for k in value)
                or not 0 <= value[0] < value[1]
            ):
                raise ValueError(f"ReNoise {name} must be two integers 0 <= first < end, got {value!r}")
            object.__setattr__(self, name, tuple(value))  # a file hands in lists

    @property
    def regularised(self) -> bool:
        return bool(self.lambda_kl or self.lambda_ac)

    def inverter(self, problem: Problem, start: int = 0) -> Renoiser:
        return Renoiser(self, problem, start)


class Renoiser(Stepper):
    """The stepper of ReNoise."""

    reusable = True

    def __init__(self, method: ReNoise, problem: Problem, start: int) -> None:
        schedule = problem.schedule
        self.method, self.kernels, self.problem = method, problem.kernels, problem
        self.steps = range(start, schedule.num_steps)
        self.first_late = max(start, int((schedule.t[1:] < EARLY).sum()))
        self.up = problem.place_guided(rows.up(schedule))
        j = torch.arange(method.iterations + 1, dtype=torch.float64)
        self.running_mean = problem.place(torch.stack([j / (j + 1), 1 / (j + 1)], -1).unsqueeze(1))
        if method.regularised:
            self.noise = problem.place_guided(rows.noise(schedule))
            self.moved = problem.place(rows.moved(schedule))
            self.diffuse = problem.place(rows.diffuse(schedule, start))

    @property
    def phases(self) -> tuple[range, ...]:
        """The two windows launch different work."""
        split = self.first_late - self.steps.start
        return tuple(part for part in (self.steps[:split], self.steps[split:]) if part)

    def init(self, state: State) -> State:
        x = state["latents"]
        if not self.method.regularised:
            return {"latents": x}
        self.whiten = Whitener(x, self.method.lambda_kl, self.method.lambda_ac, self.method.shifts)
        channels = x.shape[1] if self.method.shifts == "channel" else None
        steps, calls = self.problem.schedule.num_steps, self.method.iterations + 2
        self.drawn = self.problem.place(draws(steps, calls, channels))
        return {"latents": x, "origin": x, "added": self.problem.draw(x.shape, self.method.seed)}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor]:
        x = y = state["latents"]
        early, average = step.i < self.first_late, self.method.average
        window = range(*(self.method.early_window if early else self.method.late_window))
        last = self.method.iterations
        if early and self.method.first_iterations:
            last = min(last, self.method.first_iterations)
        if average and last >= window.start:
            last = min(last, window.stop - 1)  # nothing after the window changes the mean
        reference, mean = self._reference(step, state, predict), None
        for k in range(last + 1):
            output = predict(y, step.t)
            f, sums = self.kernels.lincomb_residual((x, y, *output), self.up, step.index, y)
            found = [f, *self._noise(step, y, output)]
            if average and k in window:
                mean = found if mean is None else self._mean(mean, found, k - window.start)
            regular = k < last and k >= window.start if average else k > 0 or window.start == 0
            y = self._whitened(step, k, found, reference) if regular else f
        if mean is not None:
            y = self._whitened(step, last + 1, mean, reference)
        return {**state, "latents": y}, sums

    def _reference(self, step: Step, state: State, predict: Predict) -> torch.Tensor | None:
        """The noise predicted at forward-diffused data."""
        if not self.method.regularised:
            return None
        z = self.kernels.lincomb((state["origin"], state["added"]), self.diffuse, step.index)[0]
        return self._noise(step, z, predict(z, step.t))[0]

    def _noise(self, step: Step, y: torch.Tensor, output: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        return self.kernels.lincomb((y, *output), self.noise, step.index) if self.method.regularised else []

    def _mean(self, mean: list[torch.Tensor], found: list[torch.Tensor], j: int) -> list[torch.Tensor]:
        """Mean of the first j + 1 iterates, and of their noises."""
        return [self.kernels.lincomb(pair, self.running_mean, j)[0] for pair in zip(mean, found, strict=True)]

    def _whitened(
        self, step: Step, call: int, found: list[torch.Tensor], reference: torch.Tensor | None
    ) -> torch.Tensor:
        """The iterate with its noise regularised."""
        if reference is None:
            return found[0]
        f, noise = found
        new = self.whiten(noise, reference, _row(self.drawn, step.index)[call])
        return self.kernels.lincomb((f, new, noise), self.moved, step.index)[0]


def _row(table: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
    return table[index] if isinstance(index, int) else table.index_select(0, index.reshape(1)).squeeze(0)
