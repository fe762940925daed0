"""DDIM inversion: x_b = UP(x_a, eps(x_a, t_b)), one evaluation a step, asked at the target's time, t_b.

Song et al., arXiv 2010.02502, section 4.3; Couairon et al., arXiv 2210.11427.
"""

from __future__ import annotations

from dataclasses import dataclass

from invfast import rows
from invfast.methods.base import ENDS, Linear, Method, Problem, check_choice


@dataclass(frozen=True)
class DDIM(Method):
    """Plain DDIM inversion: N evaluations. Fast and inexact; the baseline of the field.

    Args:
        asked: at which end of a step the network is asked, "target" or "source". The source's time is what
            guided-diffusion and older code take, and is for parity with them: the way back asks at the target's.

    Raises:
        ValueError: `asked` is neither.
    """

    asked: str = "target"

    def __post_init__(self) -> None:
        check_choice("DDIM asked", self.asked, ENDS)

    def inverter(self, problem: Problem, start: int = 0) -> Linear:
        schedule, at_source = problem.schedule, self.asked == "source"
        table = rows.from_source(schedule) if at_source else rows.explicit(rows.up(schedule))
        steps = range(start, schedule.num_steps)
        return Linear(problem.kernels, problem.place_guided(table), steps, at_source=at_source)
