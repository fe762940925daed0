"""The first K steps replaced by one jump of forward diffusion, x = alpha_K x_0 + sigma_K n, then any method.

"There and Back Again", arXiv 2410.23530, section 5: the first inversion steps leave the plain areas of an image in the
latents, and noise removes them. A knob for editability: what the jump drowns cannot be reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

from invfast import rows
from invfast.methods.base import Method, Problem, State, Stepper, Wrapping
from invfast.methods.ddim import DDIM
from invfast.schedule import NEGLIGIBLE, Schedule, Step


@dataclass(frozen=True)
class ForwardStart(Method):
    """N - K evaluations around DDIM; around another method, what it costs from step K on.

    Args:
        steps: K, how many inversion steps the jump stands for, at least 1. It lands on the source level of step K. A
            step that moves nothing (`Schedule.dropped`: the first one with steps_offset=0) counts, as in the authors'
            code: there K = 1 lands on the data's own level, next to no noise.
        method: the method for the remaining steps.
        seed: image j of a batch draws its noise from a generator of seed + j, unless `invert` is given generators.
            Not 0, which images are generated with: an image's own noise, drawn again, would be no finding.

    Raises:
        ValueError: `steps` below 1, or (when run) above the number of steps of the grid, or all of them on a grid that
            ends at alpha = 0.
        TypeError: `method` is no Method.
    """

    steps: int = 2
    method: Method = field(default_factory=DDIM)
    seed: int = 23530

    def __post_init__(self) -> None:
        if not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"ForwardStart steps must be an integer of at least 1, got {self.steps!r}")
        if not isinstance(self.method, Method):
            raise TypeError(f"ForwardStart method must be a Method instance, got {self.method!r}")

    @property
    def guidance_scale(self) -> float | None:
        return self.method.guidance_scale

    @property
    def own_sampler(self) -> str | None:
        return self.method.own_sampler

    @property
    def inverse_guidance(self) -> float | None:
        return self.method.inverse_guidance

    def inverter(self, problem: Problem, start: int = 0) -> _Jumped:
        if start:
            raise ValueError("ForwardStart begins at the data and cannot stand inside another ForwardStart")
        schedule, node = problem.schedule, self._node(problem.schedule)
        if node > schedule.num_steps:
            raise ValueError(
                f"ForwardStart steps={self.steps} is more than the {schedule.dropped + schedule.num_steps} steps of "
                "the grid"
            )
        if node == schedule.num_steps and float(schedule.alpha[-1]) ** 2 <= NEGLIGIBLE:
            raise ValueError(
                f"ForwardStart steps={self.steps} jumps to alpha = {float(schedule.alpha[-1]):.3g}, where "
                "nothing of the image is left; use fewer"
            )
        return _Jumped(self, problem, node)

    def sampler(self, problem: Problem, start: int) -> Stepper:
        return self.method.sampler(problem, start)

    def _node(self, schedule: Schedule) -> int:
        """Where the jump lands."""
        return max(0, self.steps - schedule.dropped)


class _Jumped(Wrapping):
    """The inner stepper from step K on, behind the jump; the noise stays with the state."""

    def __init__(self, method: ForwardStart, problem: Problem, node: int) -> None:
        super().__init__(method.method.inverter(problem, node), ("noise",))
        self.table = problem.place(rows.jump(problem.schedule, node))
        self.kernels = problem.kernels
        self.noise = lambda shape: problem.draw(shape, method.seed)

    def init(self, state: State) -> State:
        x = state["latents"]
        noise = self.noise(x.shape)
        return {**self.inner.init({"latents": self.kernels.lincomb((x, noise), self.table, 0)[0]}), "noise": noise}

    def around(self, step: Step, before: State) -> State:
        return {"noise": before["noise"]}
