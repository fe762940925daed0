"""What goes around a way down: the source put back onto its path, the outside of a mask kept; and FlowEdit's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from invfast.inversion import Inversion
from invfast.methods.base import Predict, Problem, State, Stepper
from invfast.methods.direct import number, numbers
from invfast.schedule import Step


class Kept(Stepper):
    """A sampler whose latents are put back, in part, onto the path that the inversion took.

    Args:
        inner: the sampler.
        problem: of the run.
        path: (B, N + 1, C, h, w), or (B, N, C, h, w) without the noise: the latents of every node, from x_0.
        rows: latents of an image.
        source: whether the first row is put back.
        mask: (B, 1, h, w) in [0, 1], of the last row what may change; None for all of it.
    """

    def __init__(
        self, inner: Stepper, problem: Problem, path: torch.Tensor, rows: int, source: bool, mask: torch.Tensor | None
    ) -> None:
        self.inner, self.steps, self.keep = inner, inner.steps, inner.keep
        self.path, self.rows, self.source, self.mask = path, rows, source, mask
        self.numbers = numbers(problem)

    @property
    def phases(self) -> tuple[range, ...]:
        return self.inner.phases

    def init(self, state: State) -> State:
        return self.inner.init(state)

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, torch.Tensor | None]:
        new, sums = self.inner.step(step, state, predict)
        rows = list(new["latents"].chunk(self.rows, 1))
        there = self.path.index_select(1, number(step, self.numbers)).squeeze(1)
        if self.source:
            rows[0] = there
        if self.mask is not None:
            rows[-1] = torch.lerp(there, rows[-1], self.mask)
        return {**new, "latents": torch.cat(rows, 1)}, sums


class AlongDifference(Stepper):
    """FlowEdit: the edit moves by the difference of two velocities, asked of equally noised source and edit.

    Args:
        problem: of the run, without guidance.
        clean: (B, C, h, w) the source.
        scales: guidance of the source and of the edit.
        first: how many steps are taken, the last ones of the way down.
        draws: noises averaged in a step; an image has all of its own from one generator.
        seed: of the first image's.
    """

    def __init__(
        self, problem: Problem, clean: torch.Tensor, scales: tuple[float, float], first: int, draws: int, seed: int
    ) -> None:
        self.steps, self.clean, self.scales = range(first - 1, -1, -1), clean, scales
        self.numbers = numbers(problem)
        self.sigma = problem.place(problem.schedule.sigma)
        self.noise = problem.draw((len(clean), first, draws, *clean.shape[1:]), seed)

    def init(self, state: State) -> State:
        return {"latents": torch.cat([self.clean, self.clean], 1)}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        at = number(step, self.numbers)
        low, high = self.sigma.index_select(0, at), self.sigma.index_select(0, at + 1)
        edit = state["latents"].chunk(2, 1)[1]
        noises = self.noise.index_select(1, at).squeeze(1)
        moves = [self._difference(edit, noise, high, step, predict) for noise in noises.unbind(1)]
        edit = edit + (low - high) * torch.stack(moves).mean(0)
        return {"latents": torch.cat([self.clean, edit], 1)}, None

    def _difference(
        self, edit: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, step: Step, predict: Predict
    ) -> torch.Tensor:
        source = (1 - sigma) * self.clean + sigma * noise
        outputs = predict(torch.cat([source, edit + source - self.clean], 1), step.t)
        both = [output.chunk(2, 1) for output in outputs]
        if len(both) == 1:
            return both[0][1] - both[0][0]
        first, second = [torch.lerp(u, c, g) for u, c, g in zip(both[1], both[0], self.scales, strict=True)]
        return second - first


def path_of(inversion: Inversion, still: bool = False) -> torch.Tensor | None:
    """(B, nodes, C, h, w) the latents of every node from x_0 on, where they were kept; `still`, x_0 at all of them."""
    if still:
        return inversion.init_latents.unsqueeze(1).expand(-1, inversion.schedule.num_steps, -1, -1, -1)
    if inversion.trajectory is not None:
        return inversion.trajectory.transpose(0, 1)
    return inversion.state.get("path")


def beside(state: State, rows: int) -> State:
    """A state of (B, ..., C, h, w) for `rows` latents of each image, all of them as the one."""
    return {name: torch.cat([value] * rows, -3) for name, value in state.items()}


def of_all(states: Sequence[State]) -> State:
    """Several images' states side by side in the channels."""
    return {name: torch.cat([state[name] for state in states], -3) for name in states[0]}
