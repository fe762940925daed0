"""Direct inversion: the latents of the way up are kept, and on the way down the source branch is put back onto them.

    y = DOWN(x_{i+1});   d = z_i - y at source rows;   x_i = y + d at source rows, y at all others

Ju et al., "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code", ICLR 2024 (arXiv 2310.01506). Under
guidance the way down leaves the way up at once; here what the source shows an edit (attention maps, keys, values) is
that of the image itself, while the rows of the edit are left to the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real

import torch

from invfast import rows
from invfast.methods.base import Method, Predict, Problem, State, Stepper, Wrapping
from invfast.methods.ddim import DDIM
from invfast.schedule import Step


@dataclass(frozen=True)
class AtGuidance(Method):
    """What goes around a method that inverts at guidance 1, for a way back at another.

    Args:
        guidance_scale: of the way back, above 1.
        method: the one that inverts; one that is sampled by DDIM.
        inverse_guidance: of the way up, at least 0, where it is another than 1: 0 is the negative prompt alone.

    Raises:
        ValueError: guidance of at most 1, a negative one upwards, or a method that brings a sampler or a guidance of
            its own.
        TypeError: `method` is no Method.
    """

    guidance_scale: float = 7.5
    method: Method = field(default_factory=DDIM)
    inverse_guidance: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Direct(AtGuidance):
    """What its inner method costs, and N evaluations on the way back. The path is kept, (B, N, C, h, w).

    A reconstruction returns to x_0 itself whatever the guidance, so it says nothing of the method. Rows of the latents
    beyond the images of the path are edits. Settings and errors are those of `AtGuidance`.
    """

    def inverter(self, problem: Problem, start: int = 0) -> Recorded:
        return Recorded(self, problem, start)

    def sampler(self, problem: Problem, start: int) -> Returned:
        return Returned(problem, start)


class Recorded(Wrapping):
    """The inner stepper; "path" (B, N, C, h, w) takes the latents each step begins with."""

    def __init__(self, method: Method, problem: Problem, start: int) -> None:
        if start:
            raise ValueError(
                f"{type(method).__name__} needs the latents of every node; ForwardStart leaves out the first {start}"
            )
        super().__init__(method.method.inverter(problem), ("path",))
        self.numbers = numbers(problem)

    def init(self, state: State) -> State:
        x = state["latents"]
        return {**self.inner.init(state), "path": x.new_zeros((len(x), len(self.steps), *x.shape[1:]))}

    def around(self, step: Step, before: State) -> State:
        x, path = before["latents"], before["path"]
        return {"path": path.index_copy(1, number(step, self.numbers), x.unsqueeze(1))}


class Returned(Stepper):
    """Sampling that returns to the path, step by step."""

    reusable = True

    def __init__(self, problem: Problem, start: int) -> None:
        self.kernels, self.nodes, self.numbers = problem.kernels, problem.schedule.num_steps, numbers(problem)
        self.table = problem.place_guided(rows.down(problem.schedule))
        self.steps = range(start - 1, -1, -1)

    def init(self, state: State) -> State:
        x, path = state["latents"], state.get("path")
        if path is None or path.shape[1:] != (self.nodes, *x.shape[1:]) or len(path) > len(x):
            got = "none" if path is None else str(tuple(path.shape))
            raise ValueError(
                f"Direct samples along the path of an inversion on the same grid, expected state 'path' of shape "
                f"{(len(x), self.nodes, *x.shape[1:])}, got {got}"
            )
        return {"latents": x, "path": path}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x, path = state["latents"], state["path"]
        y = self.kernels.lincomb((x, *predict(x, step.t)), self.table, step.index)[0]
        source, edits = y[: len(path)], y[len(path) :]
        wanted = path.index_select(1, number(step, self.numbers)).squeeze(1)
        return {"latents": torch.cat([source + (wanted - source), edits]), "path": path}, None


def check_settings(method: Method) -> None:
    """A guidance above 1 and an inner method whose latents DDIM sampling leads back from."""
    name, scale, inner = type(method).__name__, method.guidance_scale, method.method
    if not isinstance(scale, Real) or not 1 < scale < float("inf"):
        raise ValueError(f"{name} guidance_scale must be a finite number above 1, got {scale!r}")
    upwards = method.inverse_guidance
    if not isinstance(upwards, Real) or not 0 <= upwards < float("inf"):
        raise ValueError(f"{name} inverse_guidance must be a finite number of at least 0, got {upwards!r}")
    if not isinstance(inner, Method):
        raise TypeError(f"{name} method must be a Method instance, got {inner!r}")
    if type(inner).sampler is not Method.sampler or inner.guidance_scale is not None:
        raise ValueError(f"{name} method must be one that plain DDIM sampling undoes, such as DDIM(), got {inner!r}")


def numbers(problem: Problem) -> torch.Tensor:
    """0 .. N - 1 on the device, for `number`."""
    return torch.arange(problem.schedule.num_steps, device=problem.device)


def number(step: Step, numbers: torch.Tensor) -> torch.Tensor:
    """A step's number as an index on the device, (1,), wherever it is known."""
    index = step.index
    return numbers[index : index + 1] if isinstance(index, int) else index.reshape(1)
