"""Implicit inversion that spends evaluations where the residual asks for them.

Each step begins where the noise of the last two steps, extrapolated in sigma / alpha, leads, and iterates x = f(x) with
Anderson mixing until |f(y) - y| / |f(y)| falls below a tolerance, every image on its own. Nearly all steps are done at
once; the two or three behind the first, where the noise has not settled, take most of what is spent beyond one
evaluation a step, and decide how exact the whole inversion is.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from invfast.methods.base import Method, Predict, Problem, State
from invfast.methods.fixed_point import FixedPoint, Implicit
from invfast.schedule import Step

MARGIN = 12.0
"""dB by which the latent PSNR exceeds the tolerance in dB. Measured on the bundled model: 12 to 14 on 10 steps, 12 to
22 on 20, 19 to 27 on 50; above some 70 dB short grids no longer follow."""


@dataclass(frozen=True)
class Auto(Method):
    """From a little over N evaluations, by a target.

    Args:
        target: latent PSNR in dB (peak the range of x_0) that reconstruction is to reach, 30 to 140. An estimate, not a
            bound: it sets the tolerance of a step, 10^(-(target - 12) / 20).
        iterations: evaluations a step at most, at least 1.

    Raises:
        ValueError: a value outside its range.
    """

    target: float = 70.0
    iterations: int = 12

    def __post_init__(self) -> None:
        if not isinstance(self.target, Real) or not 30 <= self.target <= 140:
            raise ValueError(f"Auto target must lie in [30, 140] dB, got {self.target!r}")
        self.solver  # noqa: B018 (checks the iterations)

    @property
    def solver(self) -> FixedPoint:
        """The fixed-point iteration that the target asks for."""
        tolerance = 10 ** (-(self.target - MARGIN) / 20)
        return FixedPoint(self.iterations, "anderson", "linear", tolerance)

    def inverter(self, problem: Problem, start: int = 0) -> Implicit:
        return Adaptive(self.solver, problem, start)


class Adaptive(Implicit):
    """As FixedPoint's, but the first step begins at its own latent: it is short, and evaluations buy more later."""

    def begin(self, step: Step, state: State, predict: Predict) -> State:
        if step.i == self.steps.start:
            return {"x": state["latents"], "y": state["latents"]}
        return super().begin(step, state, predict)
