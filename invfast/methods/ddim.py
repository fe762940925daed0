"""DDIM inversion: x_b = UP(x_a, eps(x_a, t_b)), one evaluation a step, asked at the target's time.

Song et al., arXiv 2010.02502, section 4.3; Couairon et al., arXiv 2210.11427.
"""

from __future__ import annotations

from dataclasses import dataclass

from invfast import rows
from invfast.methods.base import Linear, Method, Problem


@dataclass(frozen=True)
class DDIM(Method):
    """Plain DDIM inversion: N evaluations. Fast and inexact; the baseline of the field."""

    def inverter(self, problem: Problem, start: int = 0) -> Linear:
        schedule = problem.schedule
        table = problem.place_guided(rows.explicit(rows.up(schedule)))
        return Linear(problem.kernels, table, range(start, schedule.num_steps))
