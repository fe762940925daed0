"""Corrections for guidance above 1: an embedding is tuned so that guided sampling follows the way the inversion came.

    null-text          min over the unconditional embedding of |DOWN_g(x, cond, null) - z_i|^2, step by step downwards
    prompt tuning      the same over the conditional embedding
    negative-prompt    no search: the unconditional embedding is the source prompt's, so that both branches agree

z_i are the latents of an inversion at guidance 1 and DOWN_g is a DDIM step at guidance g. Each step runs a few Adam
iterations from the embedding of the step before; loss and gradient are those of the mean over the image's elements,
every image by itself. Mokady et al., CVPR 2023 (arXiv 2211.09794); Dong et al., ICCV 2023 (arXiv 2305.04441); Miyake et
al., WACV 2025 (arXiv 2305.16807).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import ClassVar

import torch

from invfast import rows
from invfast.methods.base import Conditioned, Method, Problem, State, Stepper, Wrapping, one_by_one
from invfast.methods.ddim import DDIM
from invfast.methods.direct import AtGuidance, Recorded, check_settings, number, numbers
from invfast.schedule import Step

CONDITIONAL, UNCONDITIONAL = 0, 1
PUBLISHED_STEPS = 100
"""The rate falls by 1 % a step, as published for 50 steps; over longer grids it falls to zero at their end."""


@dataclass(frozen=True)
class NullText(Method):
    """The inner method's evaluations, and `iterations` + 2 a step at most, of one sample each; they are differentiated.

    Args:
        guidance_scale: g, above 1; what `reconstruct` then runs at by default.
        iterations: Adam's a step, at least 1.
        learning_rate: of the first step from the noise; it falls by 1 % a step.
        tolerance: an image is done with a step once its loss is below tolerance (1 + 2 i), i the steps taken.
        method: finds the latents to follow; one that is sampled by DDIM.

    Raises:
        ValueError: a value outside its range, or a method that brings a sampler or a guidance of its own.
        TypeError: `method` is no Method.
    """

    guidance_scale: float = 7.5
    iterations: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5
    method: Method = field(default_factory=DDIM)

    branch: ClassVar[int] = UNCONDITIONAL
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)
        name = type(self).__name__
        if not isinstance(self.iterations, Integral) or self.iterations < 1:
            raise ValueError(f"{name} iterations must be an integer of at least 1, got {self.iterations!r}")
        if not isinstance(self.learning_rate, Real) or not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"{name} learning_rate must be a finite number above 0, got {self.learning_rate!r}")
        if not isinstance(self.tolerance, Real) or not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"{name} tolerance must be a finite number of at least 0, got {self.tolerance!r}")

    def inverter(self, problem: Problem, start: int = 0) -> Recorded:
        return Recorded(self, problem, start)

    def refiner(self, problem: Problem, node: int) -> Tuner:
        return Tuner(self, problem, node)

    def sampler(self, problem: Problem, start: int) -> Stepper:
        if problem.guidance_scale <= 1 and self.branch == UNCONDITIONAL:
            return super().sampler(problem, start)
        return Guided(problem, start, self.branch)


@dataclass(frozen=True)
class PromptTuning(NullText):
    """As NullText, over the embedding of the prompt."""

    learning_rate: float = 5e-3

    branch: ClassVar[int] = CONDITIONAL


@dataclass(frozen=True)
class NegativePrompt(AtGuidance):
    """What its inner method costs. With the source's own prompt every guidance reconstructs as 1 does.

    Settings and errors are those of `AtGuidance`.
    """

    def inverter(self, problem: Problem, start: int = 0) -> Noted:
        return Noted(self.method.inverter(problem, start), problem.embeds[CONDITIONAL])

    def sampler(self, problem: Problem, start: int) -> Stepper:
        if problem.guidance_scale <= 1:
            return super().sampler(problem, start)
        return Guided(problem, start, UNCONDITIONAL)


class Tuner(Stepper):
    """From the noise down: tunes each step's embedding, "embeds" (B, N, tokens, width), and takes the step with it."""

    keep = ("embeds",)

    def __init__(self, method: NullText, problem: Problem, node: int) -> None:
        self.method, self.kernels, self.branch = method, problem.kernels, method.branch
        self.embeds, self.numbers = problem.embeds, numbers(problem)
        self.steps = range(node - 1, -1, -1)
        self.table = problem.place_guided(_followed(problem, method.branch))

    @property
    def phases(self) -> tuple[range, ...]:
        return one_by_one(self.steps)

    def init(self, state: State) -> State:
        x, start = state["latents"], self.embeds[self.branch]
        steps = state["path"].shape[1]
        return {
            "latents": x,
            "path": state["path"],
            "tuned": start,
            "embeds": start.unsqueeze(1).repeat(1, steps, 1, 1),
        }

    def step(self, step: Step, state: State, predict: Conditioned) -> tuple[State, None]:
        x, wanted, tuned = state["latents"], state["path"][:, step.i], state["tuned"].clone()
        taken = self.steps.start - step.i
        goal = self.method.tolerance * (1 + 2 * taken) * x[0].numel()
        adam = _Adam(tuned, self.method.learning_rate * (1 - taken / max(PUBLISHED_STEPS, len(self.steps))))
        found, open_ = torch.empty_like(x), list(range(len(x)))
        other = predict.branch(1 - self.branch, x, step.t, self.embeds[1 - self.branch], open_)[0]
        for k in range(self.method.iterations + 1):
            last = k == self.method.iterations
            output, pullback = predict.branch(self.branch, x, step.t, tuned, open_, gradient=not last)
            both = (output, other[open_]) if self.branch == CONDITIONAL else (other[open_], output)
            inputs = (x[open_], wanted[open_], *both)
            found[open_], slope, sums = self.kernels.lincomb_residual(inputs, self.table, step.index, wanted[open_])
            still = [] if last else [j for j, loss in enumerate(sums[:, 0].tolist()) if not loss < goal]
            if not still:
                break
            gradient = pullback(slope)[still] * (2 / x[0].numel())
            open_ = [open_[j] for j in still]
            adam.step(open_, gradient)
        embeds = state["embeds"].index_copy(1, number(step, self.numbers), tuned.unsqueeze(1))
        return {"latents": found, "path": state["path"], "tuned": tuned, "embeds": embeds}, None


class Noted(Wrapping):
    """The inner stepper; the source prompt's embedding is kept beside its state, (B, 1, tokens, width)."""

    def __init__(self, inner: Stepper, embeds: torch.Tensor) -> None:
        super().__init__(inner, ("embeds",))
        self.embeds = embeds.unsqueeze(1)

    def init(self, state: State) -> State:
        return {**self.inner.init(state), "embeds": self.embeds}

    def around(self, step: Step, before: State) -> State:
        return {"embeds": before["embeds"]}


class Guided(Stepper):
    """DDIM sampling with the embeddings of one branch replaced, (B, N, tokens, width) for each step, or one for all.

    "others" are those of both branches as the prompts give them, (B, 2, tokens, width).
    """

    reusable = True

    def __init__(self, problem: Problem, start: int, branch: int) -> None:
        self.kernels, self.branch, self.nodes = problem.kernels, branch, problem.schedule.num_steps
        self.embeds, self.numbers = torch.stack(problem.embeds, 1), numbers(problem)
        self.table = problem.place_guided(rows.down(problem.schedule))
        self.steps = range(start - 1, -1, -1)

    def init(self, state: State) -> State:
        x, embeds = state["latents"], state.get("embeds")
        shape = self.embeds[:, self.branch].shape
        if embeds is None or embeds.shape not in [(len(x), n, *shape[1:]) for n in (1, self.nodes)]:
            raise ValueError(
                f"sampling needs the embeddings of an inversion on the same grid, expected state 'embeds' of shape "
                f"{(len(x), self.nodes, *shape[1:])}, got {'none' if embeds is None else tuple(embeds.shape)}; prompts "
                "given as embeddings need as many tokens as they had then"
            )
        return {"latents": x, "embeds": embeds, "others": self.embeds}

    def step(self, step: Step, state: State, predict: Conditioned) -> tuple[State, None]:
        x, embeds = state["latents"], state["embeds"]
        given = list(state["others"].unbind(1))
        given[self.branch] = embeds.index_select(1, number(step, self.numbers) % embeds.shape[1]).squeeze(1)
        outputs = predict.under(x, step.t, given)
        return {**state, "latents": self.kernels.lincomb((x, *outputs), self.table, step.index)[0]}, None


class _Adam:
    """Adam on the images of a batch that are still open, in place."""

    def __init__(self, values: torch.Tensor, rate: float) -> None:
        self.values, self.rate, self.taken = values, rate, 0
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, open_: list[int], gradient: torch.Tensor) -> None:
        self.taken += 1
        self.mean[open_] = mean = 0.9 * self.mean[open_] + 0.1 * gradient
        self.square[open_] = square = 0.999 * self.square[open_] + 0.001 * gradient.square()
        size = (square / (1 - 0.999**self.taken)).sqrt() + 1e-8
        self.values[open_] -= self.rate / (1 - 0.9**self.taken) * mean / size


def _followed(problem: Problem, branch: int) -> torch.Tensor:
    """(N, 2, 3): inputs (x_b, z, o) -> y = DOWN(x_b, o), and (y - z) times the weight of one branch's output in y."""
    scale = problem.guidance_scale
    p, q = rows.down(problem.schedule)[:, 0].unbind(-1)
    zero, weight = torch.zeros_like(p), q * (scale if branch == CONDITIONAL else 1 - scale)
    y = torch.stack([p, zero, q], -1)
    return torch.stack([y, weight.unsqueeze(-1) * torch.stack([p, zero - 1, q], -1)], 1)
