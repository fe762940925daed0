"""GNRI as its authors' code has it: z <- z + mean|f(z) - z| sign(f(z) - z), and the best f(z) that was met.

Samuel et al., "Lightning-Fast Image Inversion and Editing for Text-to-Image Diffusion Models", ICLR 2025 (arXiv
2312.12540). The paper derives a Newton-Raphson step for the residual |f(z) - z|; the published code does not
differentiate through the network, which leaves of the Jacobian the sign, and all elements move by the same amount. It
is here to be compared with. The mean is over the image's own elements, where the code divides by 64 x 64 x 4.

The "guided" of its name is a prior: with `prior` a, |f(z) - z| becomes |f(z) - z| - a log q(f(z) | x_0), q the forward
diffusion of the data, without its constant. f(z) is not differentiated there, either, so what the prior changes is how
far a step goes, and which f(z) is the best. It is measured as in that code, in the scale of its sampler, x / alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch

from invfast import rows
from invfast.methods.base import Method, Predict, Problem, State, Stepper
from invfast.methods.direct import number, numbers
from invfast.schedule import FLOW, Step


@dataclass(frozen=True)
class GNRI(Method):
    """`iterations` evaluations a step; one is DDIM inversion.

    Args:
        iterations: at least 1.
        prior: weight of the prior, at least 0; .1 is published, 0 leaves it out.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 2
    prior: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, Integral) or self.iterations < 1:
            raise ValueError(f"GNRI iterations must be an integer of at least 1, got {self.iterations!r}")
        if not isinstance(self.prior, Real) or not 0 <= self.prior < float("inf"):
            raise ValueError(f"GNRI prior must be a finite number of at least 0, got {self.prior!r}")

    def inverter(self, problem: Problem, start: int = 0) -> SignStepper:
        return SignStepper(self, problem, start)


class SignStepper(Stepper):
    """The stepper of GNRI; of each image it keeps the f(z) whose mean |f(z) - z|, prior included, was least."""

    reusable = True

    def __init__(self, method: GNRI, problem: Problem, start: int) -> None:
        self.times, self.kernels = method.iterations, problem.kernels
        self.steps = range(start, problem.schedule.num_steps)
        self.up = problem.place_guided(rows.with_residual(rows.up(problem.schedule)))
        self.guided = method.prior > 0
        if self.guided:
            self.apart = problem.place(rows.from_mean(problem.schedule, start))
            scale = problem.schedule.alpha[1:] if problem.schedule.prediction_type != FLOW else 1.0
            self.weights = problem.place(method.prior / 2 * scale * torch.ones(problem.schedule.num_steps))
            self.numbers = numbers(problem)

    def init(self, state: State) -> State:
        x = state["latents"]
        return {"latents": x, "origin": x} if self.guided else {"latents": x}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor]:
        x = z = state["latents"]
        best: tuple[torch.Tensor, ...] = ()
        for _ in range(self.times):
            f, gap, sums = self.kernels.lincomb_residual((x, z, *predict(z, step.t)), self.up, step.index, z)
            mean = gap.abs().flatten(1).mean(1)
            if self.guided:
                (apart,) = self.kernels.lincomb((f, state["origin"]), self.apart, step.index)
                weight = self.weights.index_select(0, number(step, self.numbers))
                mean = mean + weight * apart.square().flatten(1).mean(1)
            best = _better((mean, f, sums), best)
            z = z + gap.sign() * mean.reshape(-1, 1, 1, 1)
        return {**state, "latents": best[1]}, best[2]


def _better(new: tuple[torch.Tensor, ...], old: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Of each image what has the smaller mean, the first entry."""
    if not old:
        return new
    less = new[0] < old[0]
    return tuple(torch.where(less.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True))
