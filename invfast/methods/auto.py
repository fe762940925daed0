"""Implicit inversion that spends evaluations where the residual asks for them.

Each step begins where the noise of the last two steps, extrapolated in sigma, leads, and iterates x = f(x) with
Anderson mixing until |f(y) - y| / |f(y)| falls below a tolerance, every image on its own. Nearly all steps are done at
once; the two or three behind the first, where the noise has not settled, take most of what is spent beyond one
evaluation a step, and decide how exact the whole inversion is.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch

from invfast.methods.base import Method, Predict, Problem, State
from invfast.methods.fixed_point import FixedPoint, Implicit
from invfast.schedule import Step

MARGIN = 12.0
"""dB by which the latent PSNR exceeds the tolerance in dB. Measured on the bundled model at a target of 70: 12 on 10
steps, 14 on 20, 22 on 50; grids of 10 steps follow to some 72 dB, of 20 to some 86."""
SHORT_MARGINS = {1: -8.0, 2: 5.0, 3: 7.0, 4: 8.0}
"""By steps, of grids whose way back amplifies more of a residual: measured on trailing ones, which begin at pure noise;
leading ones leave 6 dB more."""
MOST, ON_LONG, LONG = 60, 12, 10
"""Evaluations of one step at most, and those on grids of so many steps, where a step that wants more gets nowhere."""
SPENT = 0.5
"""tolerance * extra evaluations * steps: what was measured where images spent just their extra ones (.3 to .7)."""
RESERVE = 3
"""Extra evaluations the first step leaves to the next ones, where each is worth more."""


@dataclass(frozen=True)
class Auto(Method):
    """From a little over N evaluations, by one of two dials.

    Args:
        target: latent PSNR in dB (peak the range of x_0) that reconstruction is to reach, 30 to 140. An estimate, not a
            bound: it sets the tolerance of a step, 10^(-(target - 12) / 20), less on grids of up to four. What a
            network in half precision cannot reach is given up early, and said (`Stats.reached`).
        budget: evaluations a step at most, on average over the grid, at least 1: 1.05 is one more on a grid of 20. None
            spends what the target asks for; a number takes the target's place.
        iterations: evaluations of one step at most, at least 1. None: 12 on grids of 10 steps or more; on shorter ones
            240 for the grid, 60 a step at most, for there Anderson mixing gains on where the network barely contracts.

    Raises:
        ValueError: a value outside its range.
    """

    target: float = 70.0
    budget: float | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, Real) or not 30 <= self.target <= 140:
            raise ValueError(f"Auto target must lie in [30, 140] dB, got {self.target!r}")
        if self.budget is not None and (not isinstance(self.budget, Real) or not 1 <= self.budget < float("inf")):
            raise ValueError(
                f"Auto budget must be a finite number of evaluations a step, at least 1, got {self.budget!r}"
            )
        if self.iterations is not None and (not isinstance(self.iterations, Integral) or self.iterations < 1):
            raise ValueError(f"Auto iterations must be an integer of at least 1, got {self.iterations!r}")

    def extra(self, steps: int) -> int | None:
        """Evaluations that an image may take beyond one a step; None where the budget does not limit them."""
        return None if self.budget is None else int((self.budget - 1) * steps + 1e-9)

    def solver(self, steps: int) -> FixedPoint:
        """The fixed-point iteration that target or budget ask for on a grid of so many steps."""
        extra, margin = self.extra(steps), SHORT_MARGINS.get(steps, MARGIN)
        tolerance = min(0.5, 10 ** (-(self.target - margin) / 20))
        if extra is not None:
            tolerance = min(0.5, SPENT / (max(1, extra) * max(1, steps)))
        most = self.iterations or (ON_LONG if steps >= LONG else min(MOST, 4 * MOST // max(1, steps)))
        return FixedPoint(most, "anderson", "linear", tolerance)

    def inverter(self, problem: Problem, start: int = 0) -> Implicit:
        return Adaptive(self, problem, start)


class Adaptive(Implicit):
    """As FixedPoint's, but the first step begins at its own latent: it is short, and evaluations buy more later.

    Under a budget the state has "left", (B,) int64: evaluations that each image may still take beyond one a step.
    """

    def __init__(self, method: Auto, problem: Problem, start: int) -> None:
        steps = problem.schedule.num_steps - start
        super().__init__(method.solver(steps), problem, start)
        self.extra = method.extra(steps)
        if self.extra is not None:  # its tolerance says where evaluations go; what was promised is how many
            self.tolerance = None

    def init(self, state: State) -> State:
        x, new = state["latents"], super().init(state)
        return new if self.extra is None else {**new, "left": x.new_full((len(x),), self.extra, dtype=torch.int64)}

    def begin(self, step: Step, state: State, predict: Predict) -> State:
        first = step.i == self.steps.start
        x = state["latents"]
        work = {"x": x, "y": x} if first else super().begin(step, state, predict)
        return {**work, "left": state["left"]} if "left" in state else work

    def iterate(self, k: int, step: Step, work: State, predict: Predict, samples: list[int] | None = None) -> State:
        new = super().iterate(k, step, work, predict, samples)
        if "left" not in work:
            return new
        done = new["done"] | (work["left"] <= (RESERVE if step.i == self.steps.start else 0))
        return {**new, "done": done, "left": work["left"] - 1 + done}

    def finish(self, step: Step, state: State, work: State) -> tuple[State, torch.Tensor]:
        new, sums = super().finish(step, state, work)
        if "left" in work:  # an image that the iterations ran out on was charged for one more
            new["left"] = work["left"] + 1 - work["done"].long()
        return new, sums
