"""A network small enough to compute by hand: elementwise, so that no sample can see another."""

from __future__ import annotations

import torch

from invfast.denoiser.predictor import Predictor
from invfast.executors import Plain
from invfast.integrate import Hooks, Run, integrate
from invfast.methods import Method, Problem
from invfast.schedule import Schedule


def network(x: torch.Tensor, t: torch.Tensor | int, **_: torch.Tensor) -> torch.Tensor:
    """Smooth, nonlinear, depends on t; contracts enough for every fixed point to be worth iterating."""
    return 0.5 * x + 0.4 * torch.sin(2 * x + float(t) / 200)


def rewritten(schedule: Schedule):
    """`network` as noise prediction, its output written as the schedule's prediction type."""
    levels = dict(zip(schedule.t.tolist(), zip(schedule.alpha, schedule.sigma, strict=True), strict=True))

    def function(x: torch.Tensor, t: torch.Tensor | int, **static: torch.Tensor) -> torch.Tensor:
        alpha, sigma = levels[int(t)]
        eps = network(x, t)
        if schedule.prediction_type == "epsilon":
            return eps
        return (eps - sigma * x) / alpha if schedule.prediction_type == "v_prediction" else (x - sigma * eps) / alpha

    return function


def predictor(
    batch: int, dtype: torch.dtype = torch.float64, dynamic_batch: bool = True, function=network
) -> Predictor:
    return Predictor(function, {}, batch, 1, dtype, dynamic_batch)


def noise_for(shape, seed: int) -> torch.Tensor:
    return torch.stack(
        [torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed + j)) for j in range(shape[0])]
    )


def run(method: Method, schedule: Schedule, x: torch.Tensor, predict: Predictor | None = None, **hooks) -> Run:
    """Inverts x with the toy network in x's dtype."""
    predict = predictor(len(x), x.dtype) if predict is None else predict
    problem = Problem(schedule, dtype=x.dtype, draw=lambda shape, seed: noise_for(shape, seed).to(x.dtype))
    return integrate(Plain(method.inverter(problem), predict), {"latents": x}, schedule, Hooks(**hooks))


def sample(method: Method, schedule: Schedule, x: torch.Tensor, function=network) -> torch.Tensor:
    """Samples from x with the toy network."""
    stepper = method.sampler(Problem(schedule, dtype=x.dtype), schedule.num_steps)
    predict = predictor(len(x), x.dtype, function=function)
    return integrate(Plain(stepper, predict), {"latents": x}, schedule, Hooks()).state["latents"]


def grid(schedule: Schedule) -> list[tuple[int, float, float]]:
    """The schedule as the reference package wants it."""
    abar, source = (schedule.alpha**2).tolist(), (schedule.source_alpha**2).tolist()
    return list(zip(schedule.t[1:].tolist(), source, abar[1:], strict=True))


def distance(x: torch.Tensor, reference: torch.Tensor) -> float:
    """||x - ref|| / ||ref||."""
    reference = reference.double()
    return float((x.double() - reference).norm() / reference.norm())
