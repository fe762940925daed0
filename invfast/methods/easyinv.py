"""EasyInv: DDIM inversion whose latent is blended with the one before at some steps, z <- eta z + (1 - eta) z_before.

Zhang et al., arXiv 2408.05159, eq. 7 and the two variants of its published code. It damps the step: x_0 comes out
amplified and x_T under-noised, and on a well-trained model it reconstructs worse than DDIM (README, table).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from invfast import rows
from invfast.methods.base import Linear, Method, Problem
from invfast.schedule import Schedule

VARIANTS = ("after", "before")


@dataclass(frozen=True)
class EasyInv(Method):
    """N evaluations. The defaults are the paper's for Stable Diffusion 1.4; `EasyInv.sdxl()` has those for SDXL.

    Args:
        eta: weight of the new latent in (0, 1]; 1 is DDIM inversion.
        start: fraction p of the grid before the window.
        length: fraction L of the window; blended are the steps i > 0 with p N < i < (p + L) N, both strict. N and i
            count as the paper's code does (`Schedule.length`): with the step that a grid with steps_offset=0 begins
            with, which moves nothing and is not taken here.
        variant: "after" blends the step's result with its input; "before" blends the step's input with the input of
            the step before, and the noise is predicted from the unblended latent.

    Raises:
        ValueError: a value outside its range, or (when run) a partial grid that ends before the window begins.
    """

    eta: float = 0.5
    start: float = 0.05
    length: float = 0.2
    variant: str = "after"

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"EasyInv eta must lie in (0, 1], got {self.eta!r}")
        for name in ("start", "length"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"EasyInv {name} must lie in [0, 1], got {getattr(self, name)!r}")
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown EasyInv variant {self.variant!r}; expected one of {VARIANTS}")

    @classmethod
    def sdxl(cls, variant: str = "after") -> EasyInv:
        """The paper's settings for SDXL."""
        return cls(eta=0.8, start=0.85, length=0.1, variant=variant)

    def window(self, num_steps: int) -> range:
        """The blended steps of a grid of `num_steps`."""
        # Rounded: 0.85 + 0.1 is not 0.95 in binary, and the bounds are strict.
        low, high = round(self.start * num_steps, 9), round((self.start + self.length) * num_steps, 9)
        return range(max(1, math.floor(low) + 1), min(math.ceil(high), num_steps))

    def inverter(self, problem: Problem, start: int = 0) -> Linear:
        schedule = problem.schedule
        window = self._window_of(schedule)
        up = rows.up(schedule)
        steps = range(start, schedule.num_steps)
        if self.variant == "after":
            table = rows.damp(rows.explicit(up), self.eta, window)
            return Linear(problem.kernels, problem.place_guided(table), steps)
        table = rows.blend_before(up, self.eta, window)
        return Linear(problem.kernels, problem.place_guided(table), steps, ("last",))

    def _window_of(self, schedule: Schedule) -> range:
        """The blended steps of a grid, by its own numbers; the whole grid counts where it is a part."""
        whole, first, end = self.window(schedule.length), schedule.dropped, schedule.dropped + schedule.num_steps
        if whole and whole.start >= end:
            raise ValueError(
                f"EasyInv blends steps {whole.start} to {whole.stop - 1} of {schedule.length}, and this part of the "
                f"grid has only the first {end}; take a greater strength"
            )
        return range(max(whole.start, first) - first, max(min(whole.stop, end), first) - first)
