"""What a method is: tables for a schedule and one step in each direction. No loop, no runtime, no pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from invfast import rows
from invfast.ops import REFERENCE, Kernels
from invfast.schedule import Schedule, Step

State = dict[str, torch.Tensor]
"""What a step hands to the next, by name, images first: "latents" (B, C, h, w), always there, and others of that shape or
(B, n, C, h, w)."""


class Predict(Protocol):
    """(x, t) -> the network's own output, condition bound.

    Returns (o,) without classifier-free guidance and (o_cond, o_uncond) with it, each of x's shape in the network's
    dtype. `samples` lists the images to evaluate (None: all); the rows of the others hold anything finite.
    """

    dtype: torch.dtype

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, samples: list[int] | None = None
    ) -> tuple[torch.Tensor, ...]: ...

    def many(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The batch at several times: x (n, B, C, h, w), t (n,) -> outputs of x's shape."""


@dataclass(frozen=True)
class Problem:
    """Everything a method may know of one run.

    Args:
        schedule: the grid.
        guidance_scale: above 1 the network answers with two outputs.
        device, dtype: of latents and tables; float64 for a float64 network, else float32.
        draw: (shape, seed) -> standard normal noise (B, ...), each image's from a generator of its own; takes the
            method's own seed.
        kernels: the implementation of the ops.
    """

    schedule: Schedule
    guidance_scale: float = 1.0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    draw: Callable[[Sequence[int], int], torch.Tensor] | None = None
    kernels: Kernels = REFERENCE

    def place(self, table: torch.Tensor) -> torch.Tensor:
        """A table without a network output, on the device."""
        return table.to(self.device, self.dtype)

    def place_guided(self, table: torch.Tensor) -> torch.Tensor:
        """A table whose last input is the network's output, guidance folded in, on the device."""
        return self.place(rows.guided(table, self.guidance_scale) if self.guidance_scale > 1 else table)


class Stepper(Protocol):
    """A method bound to a problem, in one direction."""

    steps: range
    """Indices of the schedule's steps, in the order they are taken."""

    keep: tuple[str, ...]
    """What of the final state, beside the latents, belongs to the result; the rest only served the steps."""

    # A stepper may also have
    #   phases: ranges of steps that launch the same work, one captured graph each; by default all steps are one;
    #   iterations: their largest number where residuals cut a step short; it then has begin, iterate and finish, as
    #   `fixed_point.Implicit` does, for the executor to call.

    def init(self, state: State) -> State:
        """The state before the first step. Upwards it is given {"latents": x_0}, downwards what the inversion kept."""

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor | None]:
        """The state after a step, and, where known, of each image |f(y) - y|^2 and |f(y)|^2 in (B, 2 or more)."""


class Method:
    """Base of all methods; subclasses are frozen dataclasses of their settings."""

    def inverter(self, problem: Problem, start: int = 0) -> Stepper:
        """Data to noise, from node `start` of the schedule."""
        raise NotImplementedError

    def sampler(self, problem: Problem, start: int) -> Stepper:
        """Noise to data from node `start`: deterministic DDIM unless the method brings its own."""
        table = problem.place_guided(rows.down(problem.schedule))
        return Linear(problem.kernels, table, range(start - 1, -1, -1))


@dataclass(frozen=True)
class Linear:
    """One evaluation and one row a step: inputs (latents, carried, o), outputs (latents, carried).

    Args:
        kernels: the ops.
        table: (N, 1 + len(carried), ...) placed rows.
        steps: which steps, in order.
        carried: names of the state tensors beside the latents; where they are not given they begin as the latents.
        keep: those of them that belong to the result.
    """

    kernels: Kernels
    table: torch.Tensor
    steps: range
    carried: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def init(self, state: State) -> State:
        return {name: state.get(name, state["latents"]) for name in ("latents", *self.carried)}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x = state["latents"]
        inputs = [x, *(state[name] for name in self.carried), *predict(x, step.t)]
        outputs = self.kernels.lincomb(inputs, self.table, step.index)
        return dict(zip(("latents", *self.carried), outputs, strict=True)), None
