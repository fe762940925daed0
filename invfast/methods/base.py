"""What a method is: tables for a schedule and one step in each direction. No loop, no runtime, no pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from invfast import rows
from invfast.counts import Counts
from invfast.ops import REFERENCE, Kernels
from invfast.schedule import Schedule, Step

ENDS = ("target", "source")
"""Which end of a step the network may be asked at."""

State = dict[str, torch.Tensor]
"""What a step hands to the next, by name: always "latents" (B, C, h, w); others have that shape or (B, n, C, h, w)."""


Pullback = Callable[[torch.Tensor], torch.Tensor]
"""A cotangent of an output -> that of what it was differentiated by."""


class Predict(Protocol):
    """(x, t) -> the network's own output, condition bound.

    Returns (o,) without classifier-free guidance and (o_cond, o_uncond) with it, each of x's shape in the network's
    dtype. `samples` lists the images to evaluate (None: all); the rows of the others hold anything finite.
    """

    dtype: torch.dtype
    static: Mapping[str, torch.Tensor]
    """The condition."""
    counts: Counts
    """What was asked so far."""

    def bound(self, static: Mapping[str, torch.Tensor]) -> Predict:
        """The same of another condition, with counts of its own."""

    def nodes(self, t: torch.Tensor) -> torch.Tensor:
        """What may be given for times (n,), in a table (n, ...)."""

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, samples: list[int] | None = None
    ) -> tuple[torch.Tensor, ...]: ...

    def many(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The batch at several times: x (n, B, C, h, w), t (n,) -> outputs of x's shape."""


class Conditioned(Predict, Protocol):
    """A predictor with text embeddings, (B, tokens, width) for each of the network's outputs."""

    def under(self, x: torch.Tensor, t: torch.Tensor, embeds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """All outputs with other embeddings."""

    def branch(
        self,
        which: int,
        x: torch.Tensor,
        t: torch.Tensor,
        embeds: torch.Tensor,
        samples: list[int] | None = None,
        gradient: bool = False,
    ) -> tuple[torch.Tensor, Pullback | None]:
        """One output of x's shape, `samples` as in a call.

        With `gradient` also the map from a cotangent of the output to that of the embeddings.
        """


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything a method may know of one run.

    Args:
        schedule: the grid.
        guidance_scale: elsewhere than at 1 the network answers with two outputs.
        device, dtype: of latents and tables; float64 for a float64 network, else float32.
        draw: (shape, seed) -> standard normal noise (B, ...), each image's from a generator of its own; takes the
            method's own seed.
        kernels: the implementation of the ops.
        embeds: the text embeddings of each of the network's outputs, (B, tokens, width) in `dtype`, where it has them.
    """

    schedule: Schedule
    guidance_scale: float = 1.0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    draw: Callable[[Sequence[int], int], torch.Tensor] | None = None
    kernels: Kernels = REFERENCE
    embeds: tuple[torch.Tensor, ...] = ()

    def place(self, table: torch.Tensor) -> torch.Tensor:
        """A table without a network output, on the device."""
        return table.to(self.device, self.dtype)

    def place_guided(self, table: torch.Tensor) -> torch.Tensor:
        """A table whose last input is the network's output, guidance folded in, on the device."""
        return self.place(rows.guided(table, self.guidance_scale) if self.guidance_scale != 1 else table)


class Stepper:
    """A method bound to a problem, in one direction. What a subclass does not set is as here."""

    steps: range
    """Indices of the schedule's steps, in the order they are taken."""
    keep: tuple[str, ...] = ()
    """What of the final state, beside the latents, belongs to the result; the rest only served the steps."""
    tolerance: float | None = None
    """The relative residual that each step is promised to end below; the stats say where it did not."""
    reusable: bool = False
    """Whether its steps depend on the method's settings, the schedule, the guidance scale and the state alone, not on
    embeddings or noise of the problem: captured graphs then serve later calls."""
    iterations: int | None = None
    """Their largest number where residuals cut a step short; it then has begin, iterate and finish."""
    memory: int = 0
    """How many iterations later an iterate is still used."""

    @property
    def phases(self) -> tuple[range, ...]:
        """Ranges of steps that launch the same work."""
        return (self.steps,)

    def init(self, state: State) -> State:
        """The state before the first step. Upwards it is given {"latents": x_0}, downwards what the inversion kept."""
        raise NotImplementedError

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor | None]:
        """The state after a step, and, where known, of each image |f(y) - y|^2 and |f(y)|^2 in (B, 2 or more)."""
        raise NotImplementedError

    def kind(self, k: int) -> int:
        """Of iteration k; those of one kind launch the same work."""
        return min(k, self.memory + 1)

    # Pieces of a step, which hand on tensors by name and read nothing from the device.

    def begin(self, step: Step, state: State, predict: Predict) -> State:
        """The first iterate."""
        raise NotImplementedError

    def iterate(self, k: int, step: Step, work: State, predict: Predict, samples: list[int] | None = None) -> State:
        """Iteration k; "done" (B,) bool says which images want no other."""
        raise NotImplementedError

    def finish(self, step: Step, state: State, work: State) -> tuple[State, torch.Tensor | None]:
        """What `step` returns, of the state it began with and the last iterate."""
        raise NotImplementedError


class Wrapping(Stepper):
    """A stepper around another: its steps, and something of its own in the state."""

    def __init__(self, inner: Stepper, keep: tuple[str, ...]) -> None:
        self.inner, self.steps, self.keep = inner, inner.steps, (*keep, *inner.keep)
        self.tolerance, self.iterations, self.memory = inner.tolerance, inner.iterations, inner.memory
        self.reusable = inner.reusable

    @property
    def phases(self) -> tuple[range, ...]:
        return self.inner.phases

    def kind(self, k: int) -> int:
        return self.inner.kind(k)

    def around(self, step: Step, before: State) -> State:
        """What it adds to the state after a step, by the state before."""
        raise NotImplementedError

    def init(self, state: State) -> State:
        return self.inner.init(state)

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor | None]:
        new, sums = self.inner.step(step, state, predict)
        return {**new, **self.around(step, state)}, sums

    def begin(self, step: Step, state: State, predict: Predict) -> State:
        return self.inner.begin(step, state, predict)

    def iterate(self, k: int, step: Step, work: State, predict: Predict, samples: list[int] | None = None) -> State:
        return self.inner.iterate(k, step, work, predict, samples)

    def finish(self, step: Step, state: State, work: State) -> tuple[State, torch.Tensor | None]:
        new, sums = self.inner.finish(step, state, work)
        return {**new, **self.around(step, state)}, sums


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raises ValueError where a setting is none of those it may be."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; expected one of {tuple(known)}")


def per_sample(flag: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A flag an image, (B,), in the shape that broadcasts over what `like` (B, ...) holds of each."""
    return flag.reshape((-1,) + (1,) * (like.ndim - 1))


def one_by_one(steps: range) -> tuple[range, ...]:
    """Phases of steps of which no two do the same work for sure."""
    return tuple(range(i, i + 1) for i in steps)


class Method:
    """Base of all methods; subclasses are frozen dataclasses of their settings."""

    guidance_scale: float | None = None
    """What the way back is meant to run at, above 1; None for methods to which guidance is a matter of the caller's."""
    own_sampler: str | None = None
    """The scheduler of diffusers whose grid it runs on and whose steps its way back takes; None: DDIM's or Euler's."""
    inverse_guidance: float | None = None
    """What the way up runs at, where that is a setting of the method's; None where it is a matter of the caller's."""
    flow_only: bool = False
    """Whether it is for rectified flow alone."""
    differentiates: bool = False
    """Whether `refiner` asks for gradients of the network."""
    text_embeds: str | None = None
    """What it does with text embeddings, "tunes" them or "shares" one between the branches; None leaves them alone."""

    def inverter(self, problem: Problem, start: int = 0) -> Stepper:
        """Data to noise, from node `start` of the schedule."""
        raise NotImplementedError

    def refiner(self, problem: Problem, node: int) -> Stepper | None:
        """A second pass, down from `node` under the method's own guidance: what it keeps replaces what the first kept.

        It is given the final state of the first. None where there is none.
        """
        return None

    def sampler(self, problem: Problem, start: int) -> Stepper:
        """Noise to data from node `start`: deterministic DDIM unless the method brings its own."""
        table = problem.place_guided(rows.down(problem.schedule))
        return Linear(problem.kernels, table, range(start - 1, -1, -1))


@dataclass(frozen=True, eq=False)
class Linear(Stepper):
    """One evaluation and one row a step: inputs (latents, carried, o), outputs (latents, carried).

    Args:
        kernels: the ops.
        table: (N, 1 + len(carried), ...) placed rows.
        steps: which steps, in order.
        carried: names of the state tensors beside the latents; where they are not given they begin as the latents.
        keep: those of them that belong to the result.
        at_source: whether the network is asked at the time of node i, where a step upwards begins.
    """

    kernels: Kernels
    table: torch.Tensor
    steps: range
    carried: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    at_source: bool = False
    reusable: ClassVar[bool] = True

    def init(self, state: State) -> State:
        return {name: state.get(name, state["latents"]) for name in ("latents", *self.carried)}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x = state["latents"]
        t = step.source_t if self.at_source else step.t
        inputs = [x, *(state[name] for name in self.carried), *predict(x, t)]
        outputs = self.kernels.lincomb(inputs, self.table, step.index)
        return dict(zip(("latents", *self.carried), outputs, strict=True)), None
