"""Implicit inversion: x_b = f(x_b), f(y) = UP(x_a, eps(y, t_b)), iterated at every step.

Plain and averaged (AIDI_E) and Anderson-accelerated (AIDI_A) iteration: Pan et al., ICCV 2023. The warm start from the
noise of the step before is Uni-Inv (Jiao et al., UniEdit-Flow, arXiv 2504.13109); its extrapolation is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch

from invfast import rows
from invfast.methods.base import ENDS, Method, Predict, Problem, State, Stepper, check_choice, per_sample
from invfast.schedule import FLOW, Step

MIXINGS = ("plain", "averaged", "anderson")
EXTRAPOLATIONS = {None: 0, "constant": 1, "linear": 2, "quadratic": 3}
ROUNDING = 16.0
"""Times the eps of the network's dtype: the largest relative residual that may be its rounding. Measured on the bundled
model are 0.1 in bfloat16 and 2 in float32; more blocks, few steps and guidance take more. Above it a residual that
rises for once is the iteration's own business, and nothing is read into it."""
TF32, INT8 = 2.0**-10, 2.0**-7
"""What stands for eps where the dtype does not tell it: a GPU's float32 convolutions take TF32 unless told not to."""


@dataclass(frozen=True)
class FixedPoint(Method):
    """`iterations` evaluations a step (one more in the first step with a warm start).

    Args:
        iterations: evaluations a step at most, at least 1. One, cold and plain, is DDIM inversion.
        mixing: how the next iterate comes from the values f(y_k): "plain" the last one; "averaged" the mean of the
            last two; "anderson" the combination of the last `window` with the least residual, per image.
        warm_start: where a step begins: None at its own latent; "constant" at the step taken with the noise of the
            step before; "linear" or "quadratic" with the noise extrapolated over the last two or three steps.
        tolerance: an image whose |f(y) - y| / |f(y)| (L2) falls below it keeps that f(y) and is asked no more in this
            step; 0 spends all iterations. Nor is one whose residual is down at the rounding of the network's dtype and
            no longer falls: `Stats.reached` is False for it, as for one on which the iterations ran out.
        window: values Anderson combines, the newest included, 2 to 4.
        first: where a warm start has no noise yet, at which end of the first step it asks for one, "target" or
            "source". Uni-Inv's code takes "source", and the data at alpha = 1: a grid of a scheduler with
            set_alpha_to_one=True.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 3
    mixing: str = "plain"
    warm_start: str | None = None
    tolerance: float = 0.0
    window: int = 3
    first: str = "target"

    def __post_init__(self) -> None:
        check_choice("FixedPoint first", self.first, ENDS)
        if self.first == "source" and self.warm_start is None:
            raise ValueError("FixedPoint first='source' is how a warm start begins; pass warm_start, or leave it out")
        if not isinstance(self.iterations, Integral) or self.iterations < 1:
            raise ValueError(f"FixedPoint iterations must be an integer of at least 1, got {self.iterations!r}")
        if self.mixing not in MIXINGS:
            raise ValueError(f"unknown FixedPoint mixing {self.mixing!r}; expected one of {MIXINGS}")
        if self.warm_start not in EXTRAPOLATIONS:
            raise ValueError(f"unknown warm_start {self.warm_start!r}; expected one of {tuple(EXTRAPOLATIONS)}")
        if not isinstance(self.tolerance, Real) or not 0 <= self.tolerance < 1:
            raise ValueError(f"FixedPoint tolerance must lie in [0, 1), got {self.tolerance!r}")
        if not isinstance(self.window, Integral) or not 2 <= self.window <= 4:
            raise ValueError(f"FixedPoint window must be 2, 3 or 4, got {self.window!r}")

    def inverter(self, problem: Problem, start: int = 0) -> Implicit:
        return Implicit(self, problem, start)


class Implicit(Stepper):
    """The stepper of FixedPoint: begin, iterate, finish. Images that are done are masked: a batch equals its images.

    What warm starts extrapolate are the noises of past steps, of a flow its velocities, by the same names "noise_1" ...
    What the pieces hand on is tensors by name, so that each piece can be captured; only `step` reads from the device,
    and only where a tolerance asks for it. `tolerance` is what each step is promised to be solved to, if anything.
    """

    reusable = True

    def __init__(self, method: FixedPoint, problem: Problem, start: int) -> None:
        schedule = problem.schedule
        self.method, self.kernels = method, problem.kernels
        self.tolerance: float | None = method.tolerance or None
        self.steps = range(start, schedule.num_steps)
        up = rows.up(schedule)
        self.up = problem.place_guided(rows.with_residual(up) if method.mixing == "anderson" else up)
        self.mean = problem.place(torch.full((1, 1, 2), 0.5, dtype=torch.float64))
        self.memory = {"plain": 0, "averaged": 1, "anderson": method.window - 1}[method.mixing]
        self.order = EXTRAPOLATIONS[method.warm_start]
        if self.order:
            cold = rows.from_source(schedule) if method.first == "source" else rows.explicit(up)
            self.begun = problem.place_guided(cold)
            self.forecast = problem.place(rows.forecast(schedule, self.order, start))
            self.slope = problem.place_guided(rows.slope(schedule))
            self.is_output = schedule.prediction_type in ("epsilon", FLOW) and problem.guidance_scale == 1

    @property
    def phases(self) -> tuple[range, ...]:
        """Without a noise to start from, the first step of a warm start does something else."""
        return (self.steps[:1], self.steps[1:]) if self.order else (self.steps,)

    @property
    def iterations(self) -> int | None:
        """Iterations of a step that the residuals may cut short; None where a step is always the same work."""
        return self.method.iterations if self.method.tolerance else None

    def init(self, state: State) -> State:
        x = state["latents"]
        return {"latents": x, **{f"noise_{j}": x for j in range(1, self.order + 1)}}  # unknown ones have weight zero

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor]:
        work, samples = self.begin(step, state, predict), None
        for k in range(self.method.iterations):
            work = self.iterate(k, step, work, predict, samples)
            if self.method.tolerance and k + 1 < self.method.iterations:
                samples = [j for j, done in enumerate(work["done"].tolist()) if not done]
                if not samples:
                    break
        return self.finish(step, state, work)

    def begin(self, step: Step, state: State, predict: Predict) -> State:
        """The first iterate."""
        x = state["latents"]
        if not self.order:
            return {"x": x, "y": x}
        if step.i == self.steps.start:  # no noise yet: one evaluation more, as Uni-Inv does
            output = predict(x, step.source_t if self.method.first == "source" else step.t)
            return {"x": x, "y": self.kernels.lincomb((x, *output), self.begun, step.index)[0]}
        history = [state[f"noise_{j}"] for j in range(1, self.order + 1)]
        return {"x": x, "y": self.kernels.lincomb((x, *history), self.forecast, step.index)[0]}

    def iterate(self, k: int, step: Step, work: State, predict: Predict, samples: list[int] | None = None) -> State:
        """Iteration k of the images that are open; `samples` are those for which the network must be asked."""
        x, y = work["x"], work["y"]
        output = predict(y, step.t, samples)
        f, *r, sums = self.kernels.lincomb_residual((x, y, *output), self.up, step.index, y)
        known = range(min(k, self.memory), 0, -1)
        values = [*(work[f"value_{j}"] for j in known), f]
        residuals = [*(work[f"residual_{j}"] for j in known), *r] if r else []
        mixed = self._mix(values, residuals)
        found = {"latents": mixed, "sums": sums, **self._asked(y, output)}
        if self.method.tolerance:
            found |= self._settle(f, found, work, rounding(predict.dtype, f))
        for name, history in (("value", values), ("residual", residuals)):
            found |= {f"{name}_{j}": v for j, v in enumerate(history[::-1][: self.memory], 1)}
        return {"x": x, "y": mixed, **found}

    def finish(self, step: Step, state: State, work: State) -> tuple[State, torch.Tensor]:
        """The state after the step, and the residuals it ended with."""
        new = {"latents": work["latents"]}
        if self.order:
            new["noise_1"] = self._predicted_noise(step, work)
            new |= {f"noise_{j + 1}": state[f"noise_{j}"] for j in range(1, self.order)}
        return new, work["sums"]

    def _mix(self, values: list[torch.Tensor], residuals: list[torch.Tensor]) -> torch.Tensor:
        if len(values) == 1:
            return values[-1]
        if self.method.mixing == "averaged":
            return self.kernels.lincomb(values, self.mean, 0)[0]
        return self.kernels.anderson_mix(values, residuals)

    def _settle(self, f: torch.Tensor, found: State, work: State, floor: float) -> State:
        """An image that is not done takes the iteration's result, and is done with f once its residual is small: below
        the tolerance, or below the floor and no less than the one before.
        """
        ratio, limit = found["sums"][:, 0] / found["sums"][:, 1], self.method.tolerance**2
        if floor > self.method.tolerance and "ratio" in work:
            small = ratio < torch.where(ratio < work["ratio"], limit, floor**2)
        else:
            small = ratio < limit
        if found["latents"] is not f:
            found = {**found, "latents": torch.where(per_sample(small, f), f, found["latents"])}
        if "done" in work:
            done = work["done"]
            found = {name: torch.where(per_sample(done, new), work[name], new) for name, new in found.items()}
            small = done | small
        return {**found, "done": small, "ratio": ratio}

    def _asked(self, y: torch.Tensor, output: tuple[torch.Tensor, ...]) -> State:
        """What the noise of this step is found from, where the next begins with it."""
        if not self.order:
            return {}
        if self.is_output:
            return {"output_0": output[0].to(y.dtype)}
        return {"asked": y, **{f"output_{j}": o for j, o in enumerate(output)}}

    def _predicted_noise(self, step: Step, work: State) -> torch.Tensor:
        outputs = [work[name] for name in ("output_0", "output_1") if name in work]
        if self.is_output:
            return outputs[0]
        return self.kernels.lincomb((work["asked"], *outputs), self.slope, step.index)[0]


def rounding(dtype: torch.dtype, latents: torch.Tensor) -> float:
    """The largest relative residual that a network of this dtype, and latents like these, may leave by rounding."""
    if not dtype.is_floating_point:
        eps = INT8
    elif dtype == torch.float32 and latents.is_cuda:
        eps = TF32
    else:
        eps = torch.finfo(dtype).eps
    return ROUNDING * max(eps, torch.finfo(latents.dtype).eps)
