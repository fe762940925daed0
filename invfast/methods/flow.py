"""Methods made for rectified flow, dx/dsigma = v(x, sigma): i counts from data to noise, h is the length of a step.

    Euler         x' = x + h v(x, sigma_i): explicit, asked at the source's time
    RFSolver      m = x + h/2 v(x, sigma_i), x' = x + h v(m, sigma_i + h/2)          (Wang et al., arXiv 2411.04746)
    FireFlow      m = x + h/2 v_before, x' = x + h v(m, sigma_i + h/2)               (Deng et al., arXiv 2412.07517)
    RFInversion   up v + gamma ((y - x) / (1 - sigma) - v), y noise;
                  down v + eta ((x - x_0) / sigma - v)                               (Rout et al., arXiv 2410.10792)

RF-Solver's second-order Taylor step with its finite difference of half a step is the midpoint rule. Each samples by the
rule it inverts by, which undoes it up to the rule's own error. What is solved or kept exactly, FixedPoint, Auto, EDICT,
BDIA and O-BELM, serves flows as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch

from invfast import rows
from invfast.methods.base import Linear, Method, Predict, Problem, State, Stepper
from invfast.schedule import FLOW, Step


class FlowMethod(Method):
    """Is for rectified flow alone."""

    flow_only = True

    def check(self, problem: Problem) -> None:
        """Raises ValueError where the network predicts something else."""
        kind = problem.schedule.prediction_type
        if kind != FLOW:
            raise ValueError(
                f"{type(self).__name__} is for rectified flow, and this network predicts {kind!r}; take 'auto'"
            )


@dataclass(frozen=True)
class Euler(FlowMethod):
    """Inversion as most code has it, for parity: the network is asked at the source's time. N evaluations, inexact.

    "ddim" asks at the target's time, and is what iterating begins with.

    Raises:
        ValueError: (when run) the network is none of rectified flow.
    """

    def inverter(self, problem: Problem, start: int = 0) -> Linear:
        self.check(problem)
        table, steps = problem.place_guided(rows.along(problem.schedule)), range(start, problem.schedule.num_steps)
        return Linear(problem.kernels, table, steps, at_source=True)


@dataclass(frozen=True)
class RFSolver(FlowMethod):
    """The midpoint rule, 2 N evaluations in either direction.

    Raises:
        ValueError: (when run) the network is none of rectified flow.
    """

    def inverter(self, problem: Problem, start: int = 0) -> Midpoint:
        self.check(problem)
        return Midpoint(problem, range(start, problem.schedule.num_steps))

    def sampler(self, problem: Problem, start: int) -> Midpoint:
        return Midpoint(problem, range(start - 1, -1, -1))


@dataclass(frozen=True)
class FireFlow(FlowMethod):
    """The midpoint rule with the velocity of the step before, N + 1 evaluations in either direction.

    Raises:
        ValueError: (when run) the network is none of rectified flow.
    """

    def inverter(self, problem: Problem, start: int = 0) -> Reused:
        self.check(problem)
        return Reused(problem, range(start, problem.schedule.num_steps))

    def sampler(self, problem: Problem, start: int) -> Reused:
        return Reused(problem, range(start - 1, -1, -1))


@dataclass(frozen=True)
class RFInversion(FlowMethod):
    """A controlled flow, for editing: pulled to drawn noise on the way up, to the image in the first steps down.

    N evaluations in either direction; x_0 and the noise are kept in the state. It does not rebuild; how near the image
    a reconstruction stays says how hard it was pulled.

    Args:
        gamma: strength of the pull to noise, in [0, 1]; 0 is `Euler`.
        eta: strength of the pull to the image, in [0, 1]; 1 takes the way straight to it.
        share: of the steps down, from the noise end, in which it is pulled, in [0, 1]; published are 7 of 28.
        seed: image j of a batch draws its noise from a generator of seed + j, unless `invert` is given generators.

    Raises:
        ValueError: a value outside its range, or (when run) the network is none of rectified flow, or a start elsewhere
            than at the data, as in ForwardStart.
    """

    gamma: float = 0.5
    eta: float = 0.9
    share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "eta", "share"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"RFInversion {name} must lie in [0, 1], got {value!r}")

    def inverter(self, problem: Problem, start: int = 0) -> Pulled:
        self.check(problem)
        if start:
            raise ValueError(
                "RFInversion leads back to the data it began at and cannot begin later; use it without ForwardStart"
            )
        table, steps = rows.pulled_up(problem.schedule, self.gamma), range(problem.schedule.num_steps)
        return Pulled(problem, table, steps, lambda x: problem.draw(x.shape, self.seed))

    def sampler(self, problem: Problem, start: int) -> Pulled:
        whole, beyond = (
            problem.schedule.length,
            problem.schedule.beyond,
        )  # what a part of the grid leaves out comes first
        table = rows.pulled_down(problem.schedule, self.eta, max(0, round(self.share * whole) - beyond))
        return Pulled(problem, table, range(start - 1, -1, -1))


class Midpoint(Stepper):
    """Half a step with the velocity at its beginning, then the whole with that in the middle; in either direction."""

    reusable = True

    def __init__(self, problem: Problem, steps: range) -> None:
        self.kernels, self.steps, schedule = problem.kernels, steps, problem.schedule
        self.half = problem.place_guided(rows.along(schedule, steps.step / 2))
        self.whole = problem.place_guided(rows.along(schedule, steps.step))

    def init(self, state: State) -> State:
        return {"latents": state["latents"]}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x = state["latents"]
        output = predict(self.middle(step, x, predict), step.middle_t)
        return {"latents": self.kernels.lincomb((x, *output), self.whole, step.index)[0]}, None

    def middle(self, step: Step, x: torch.Tensor, predict: Predict) -> torch.Tensor:
        """Half a step with the velocity where it begins."""
        output = predict(x, step.source_t if self.steps.step > 0 else step.t)
        return self.kernels.lincomb((x, *output), self.half, step.index)[0]


class Reused(Midpoint):
    """The velocity in the middle also takes the next step's half: each hands on its end and the middle beyond."""

    def __init__(self, problem: Problem, steps: range) -> None:
        super().__init__(problem, steps)
        self.whole = problem.place_guided(rows.beyond(problem.schedule, steps.step))

    @property
    def phases(self) -> tuple[range, ...]:
        return self.steps[:1], self.steps[1:]

    def init(self, state: State) -> State:
        return {"latents": state["latents"], "middle": state["latents"]}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x, middle = state["latents"], state["middle"]
        if step.i == self.steps[0]:
            middle = self.middle(step, x, predict)
        outputs = self.kernels.lincomb((x, *predict(middle, step.middle_t)), self.whole, step.index)
        return dict(zip(("latents", "middle"), outputs, strict=True)), None


class Pulled(Stepper):
    """A row of (x, where it is pulled to, o(x)): "noise" upwards, and "origin", the image, downwards.

    Args:
        problem: the run's.
        table: (N, 1, 3).
        steps: which steps, in order.
        draw: latents -> noise like them, upwards; None downwards.
    """

    keep = ("noise", "origin")
    reusable = True

    def __init__(
        self,
        problem: Problem,
        table: torch.Tensor,
        steps: range,
        draw: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.kernels, self.table, self.steps, self.draw = problem.kernels, problem.place_guided(table), steps, draw

    def init(self, state: State) -> State:
        x = state["latents"]
        if self.draw is not None:
            return {"latents": x, "origin": x, "noise": self.draw(x)}
        if "origin" not in state:
            raise ValueError("RFInversion samples towards the image of an inversion, expected state 'origin', got none")
        return {"latents": x, "origin": state["origin"]}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x = state["latents"]
        to, t = (state["origin"], step.t) if self.draw is None else (state["noise"], step.source_t)
        return {**state, "latents": self.kernels.lincomb((x, to, *predict(x, t)), self.table, step.index)[0]}, None
