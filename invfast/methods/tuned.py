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
from invfast.methods.base import (
    Conditioned,
    Method,
    Problem,
    Pullback,
    State,
    Stepper,
    Wrapping,
    check_choice,
    per_sample,
)
from invfast.methods.ddim import DDIM
from invfast.methods.direct import AtGuidance, Recorded, check_settings, number, numbers
from invfast.schedule import Step

CONDITIONAL, UNCONDITIONAL = 0, 1
STOPS = ("before", "after")
PUBLISHED_GROWTH = 2e-5
"""By how much the published goal grows a step."""
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
        inverse_guidance: as of `AtGuidance`.
        stop: "before" looks at the loss before the update that would follow it; "after" takes that update first, and
            the loss to be below tolerance + 2e-5 i, as in the authors' code.

    Raises:
        ValueError: a value outside its range, or a method that brings a sampler or a guidance of its own.
        TypeError: `method` is no Method.
    """

    guidance_scale: float = 7.5
    iterations: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5
    method: Method = field(default_factory=DDIM)
    inverse_guidance: float = 1.0
    stop: str = "before"

    branch: ClassVar[int] = UNCONDITIONAL
    differentiates: ClassVar[bool] = True
    text_embeds: ClassVar[str] = "tunes"

    def __post_init__(self) -> None:
        check_settings(self)
        name = type(self).__name__
        check_choice(f"{name} stop", self.stop, STOPS)
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

    Settings and errors are those of `AtGuidance`; a network whose branches differ in more than text is refused.
    """

    text_embeds: ClassVar[str] = "shares"

    def inverter(self, problem: Problem, start: int = 0) -> Noted:
        return Noted(self.method.inverter(problem, start), problem.embeds[CONDITIONAL])

    def sampler(self, problem: Problem, start: int) -> Stepper:
        if problem.guidance_scale <= 1:
            return super().sampler(problem, start)
        return Guided(problem, start, UNCONDITIONAL)


class Tuner(Stepper):
    """From the noise down: tunes each step's embedding, "embeds" (B, N, tokens, width), and takes the step with it.

    Images that are done are masked, so that a batch equals its images. "tuned" is the embedding as it stands, "others"
    are those of both branches as the prompts give them, (B, 2, tokens, width).
    """

    keep = ("embeds",)
    reusable = True

    def __init__(self, method: NullText, problem: Problem, node: int) -> None:
        self.method, self.kernels, self.branch = method, problem.kernels, method.branch
        self.others, self.numbers = torch.stack(problem.embeds, 1), numbers(problem)
        self.steps = range(node - 1, -1, -1)
        self.table = problem.place_guided(_followed(problem, method.branch))
        taken = torch.arange(problem.schedule.num_steps, dtype=torch.float64).flip(0) - (
            problem.schedule.num_steps - node
        )
        self.rates = problem.place(method.learning_rate * (1 - taken / max(PUBLISHED_STEPS, node)))
        growth = PUBLISHED_GROWTH if method.stop == "after" else 2 * method.tolerance
        self.goals = problem.place(method.tolerance + growth * taken)
        self.adam = problem.place(_unbiased(method.iterations))

    @property
    def iterations(self) -> int | None:
        """Of a step: Adam's, and a last look at what they found; None where none of them is cut short."""
        return self.method.iterations + 1 if self.method.tolerance else None

    def kind(self, k: int) -> int:
        return int(k == self.method.iterations)

    def init(self, state: State) -> State:
        x, path, start = state["latents"], state["path"], self.others[:, self.branch]
        embeds = start.unsqueeze(1).repeat(1, path.shape[1], 1, 1)
        return {"latents": x, "path": path, "tuned": start, "embeds": embeds, "others": self.others}

    def step(self, step: Step, state: State, predict: Conditioned) -> tuple[State, None]:
        work, samples = self.begin(step, state, predict), None
        for k in range(self.method.iterations + 1):
            work, pullback = self._look(k, step, work, predict, samples)
            if self.method.tolerance:
                samples = [j for j, done in enumerate(work["done"].tolist()) if not done]
            if pullback is None or samples == []:
                break
            work = self._improve(step, work, pullback)
        return self.finish(step, state, work)

    def begin(self, step: Step, state: State, predict: Conditioned) -> State:
        """The other branch's output, which stays, and Adam at rest."""
        x, tuned = state["latents"], state["tuned"]
        other = predict.branch(1 - self.branch, x, step.t, state["others"][:, 1 - self.branch])[0]
        wanted = state["path"].index_select(1, number(step, self.numbers)).squeeze(1)
        work = {"x": x, "wanted": wanted, "other": other, "latents": x, "tuned": tuned}
        work |= {"mean": torch.zeros_like(tuned), "square": torch.zeros_like(tuned)}
        work["taken"] = torch.zeros(1, dtype=torch.int64, device=x.device)
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return {**work, "done": none, "small": none}

    def iterate(self, k: int, step: Step, work: State, predict: Conditioned, samples: list[int] | None = None) -> State:
        """Looks where the embedding leads, and takes one of Adam's steps; the last iteration only looks."""
        found, pullback = self._look(k, step, work, predict, samples)
        if pullback is not None:
            found = self._improve(step, found, pullback)
        return {name: found[name] for name in work}

    def finish(self, step: Step, state: State, work: State) -> tuple[State, None]:
        embeds = state["embeds"].index_copy(1, number(step, self.numbers), work["tuned"].unsqueeze(1))
        return {**state, "latents": work["latents"], "tuned": work["tuned"], "embeds": embeds}, None

    def _look(
        self, k: int, step: Step, work: State, predict: Conditioned, samples: list[int] | None
    ) -> tuple[State, Pullback | None]:
        """Where the embedding leads, its "slope", the loss differentiated by the output, and who is done with that."""
        x, wanted, gradient = work["x"], work["wanted"], k < self.method.iterations
        output, pullback = predict.branch(self.branch, x, step.t, work["tuned"], samples, gradient)
        both = (output, work["other"]) if self.branch == CONDITIONAL else (work["other"], output)
        found, slope, sums = self.kernels.lincomb_residual((x, wanted, *both), self.table, step.index, wanted)
        found = torch.where(per_sample(work["done"], found), work["latents"], found)
        small = sums[:, 0] < self._now(self.goals, step) * x[0].numel()
        # Stopping after the update, an image is done where the look before this one found its loss small.
        done = work["done"] | (work["small"] if self.method.stop == "after" else small)
        return {**work, "latents": found, "slope": slope, "done": done, "small": small}, pullback

    def _improve(self, step: Step, work: State, pullback: Pullback) -> State:
        """One step of Adam for the images that are not done."""
        gradient = pullback(work["slope"]) * (2 / work["x"][0].numel())
        mean = 0.9 * work["mean"] + 0.1 * gradient
        square = 0.999 * work["square"] + 0.001 * gradient.square()
        first, second = self.adam.index_select(0, work["taken"])[0].unbind()
        tuned = work["tuned"] - self._now(self.rates, step) / first * mean / ((square / second).sqrt() + 1e-8)
        tuned = torch.where(per_sample(work["done"], tuned), work["tuned"], tuned)
        return {**work, "tuned": tuned, "mean": mean, "square": square, "taken": work["taken"] + 1}

    def _now(self, table: torch.Tensor, step: Step) -> torch.Tensor:
        return table.index_select(0, number(step, self.numbers))


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


def _unbiased(iterations: int) -> torch.Tensor:
    """(iterations, 2): what Adam's means are divided by, the gradient's and that of its square."""
    taken = torch.arange(1, iterations + 1, dtype=torch.float64)
    return torch.stack([1 - 0.9**taken, 1 - 0.999**taken], -1)


def _followed(problem: Problem, branch: int) -> torch.Tensor:
    """(N, 2, 3): inputs (x_b, z, o) -> y = DOWN(x_b, o), and (y - z) times the weight of one branch's output in y."""
    scale = problem.guidance_scale
    p, q = rows.down(problem.schedule)[:, 0].unbind(-1)
    zero, weight = torch.zeros_like(p), q * (scale if branch == CONDITIONAL else 1 - scale)
    y = torch.stack([p, zero, q], -1)
    return torch.stack([y, weight.unsqueeze(-1) * torch.stack([p, zero - 1, q], -1)], 1)
