"""DPM-Solver++(2M) and what undoes it: for images made with that sampler, whose noise DDIM's inversion does not find.

    x_a = A x_b + B (D_b + w (D_b - D_c))

Sampling carries the data prediction D_c of the step before (Lu et al., arXiv 2211.01095). On the way up that step is
still to come, so its D_c is not known. Hong et al., "On Exact Inversion of DPM-Solvers", CVPR 2024 (arXiv 2311.18387)
estimate it by a finer inversion from the node at hand and solve the implicit step by gradients; here it is the
polynomial in lambda through the data predictions that the way up has made, this step's own among them, which costs no
evaluation, and the step x_b = f(x_b) is iterated with Anderson mixing, as in `fixed_point`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from invfast import rows
from invfast.methods.base import Linear, Method, Predict, Problem, State
from invfast.methods.fixed_point import FixedPoint, Implicit
from invfast.schedule import Step


@dataclass(frozen=True)
class DPMSolver(Method):
    """Some 2.5 N evaluations, N on the way back, which is DPM-Solver++(2M) itself, on the grid that diffusers'
    DPMSolverMultistepScheduler makes of the pipeline's config: the pipeline's own call regenerates the image.

    Args:
        tolerance: the relative residual |f(y) - y| / |f(y)| to which each step is solved, in [0, 1).
        iterations: evaluations of one step at most, at least 1.

    Raises:
        ValueError: a value outside its range, or (when run) a grid whose steps do not join.
    """

    tolerance: float = 1e-3
    iterations: int = 20
    own_sampler = "DPMSolverMultistepScheduler"

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance, Real) or not 0 <= self.tolerance < 1:
            raise ValueError(f"DPMSolver tolerance must lie in [0, 1), got {self.tolerance!r}")
        if not isinstance(self.iterations, Integral) or self.iterations < 1:
            raise ValueError(f"DPMSolver iterations must be an integer of at least 1, got {self.iterations!r}")

    def inverter(self, problem: Problem, start: int = 0) -> MultistepUp:
        return MultistepUp(self, problem, start)

    def sampler(self, problem: Problem, start: int) -> Linear:
        table = problem.place_guided(rows.multistep(problem.schedule, start))
        return Linear(problem.kernels, table, range(start - 1, -1, -1), ("data",))


class MultistepUp(Implicit):
    """As FixedPoint's with a linear warm start, but the first step begins at its own latent, and what earlier steps
    say of D_c is put into the latent that a step begins with. The state has their data predictions, "data_1" the last.
    """

    def __init__(self, method: DPMSolver, problem: Problem, start: int) -> None:
        super().__init__(FixedPoint(method.iterations, "anderson", "linear", method.tolerance), problem, start)
        shift, up = rows.multistep_up(problem.schedule, start)
        self.up, self.shift = problem.place_guided(rows.with_residual(up)), problem.place(shift)
        self.clean = problem.place(rows.clean(problem.schedule))

    def init(self, state: State) -> State:
        x, new = state["latents"], super().init(state)
        return {**new, "data_1": x, "data_2": x}  # what is not known has weight zero

    def begin(self, step: Step, state: State, predict: Predict) -> State:
        x = state["latents"]
        first = step.i == self.steps.start
        work = {"x": x, "y": x} if first else super().begin(step, state, predict)
        known = (x, state["data_1"], state["data_2"])
        return {**work, "x": self.kernels.lincomb(known, self.shift, step.index)[0]}

    def finish(self, step: Step, state: State, work: State) -> tuple[State, object]:
        new, sums = super().finish(step, state, work)
        data = self.kernels.lincomb((new["latents"], new["noise_1"]), self.clean, step.index)[0]
        return {**new, "data_1": data, "data_2": state["data_1"]}, sums
