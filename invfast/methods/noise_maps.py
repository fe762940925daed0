"""Edit-friendly noise maps: DDPM sampling x_a = mu(x_b) + s z, with its noises z solved for at latents drawn before.

Every node's latent is drawn from the data by itself, x_b = alpha_b x_0 + sigma_b n_b with a fresh n_b, and then
z = (x_a - mu(x_b)) / s. No latent waits for another, so the network is asked about many nodes in one batch. Neighbours
share no noise: the maps come out larger than DDPM's own and carry the picture, also into an edit.
Huberman-Spiegelglas et al., arXiv 2304.06140; there the last map is set to zero, here it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch

from invfast import rows
from invfast.methods.base import Method, Predict, Problem, State, Stepper, one_by_one
from invfast.schedule import Step


@dataclass(frozen=True)
class NoiseMaps(Method):
    """N evaluations, independent of each other; N on the way back. The maps are kept in the state, (B, N, C, h, w).

    Args:
        eta: strength of the noise in (0, 1]; 1 is DDPM, small is close to DDIM.
        chunk: latents of a network call at most (twice as many samples under guidance), at least those of one node.
        seed: image j of a batch draws its noises from a generator of seed + j, unless `invert` is given generators.

    Raises:
        ValueError: a value outside its range, or (when run) a start elsewhere than at the data, as in ForwardStart.
    """

    eta: float = 1.0
    chunk: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.eta, Real) or not 0 < self.eta <= 1:
            raise ValueError(f"NoiseMaps eta must lie in (0, 1], got {self.eta!r}")
        if not isinstance(self.chunk, Integral) or self.chunk < 1:
            raise ValueError(f"NoiseMaps chunk must be an integer of at least 1, got {self.chunk!r}")

    def inverter(self, problem: Problem, start: int = 0) -> MapsUp:
        if start:
            raise ValueError(
                "NoiseMaps draws every node from the data and cannot begin at a later one; use it without ForwardStart"
            )
        return MapsUp(self, problem)

    def sampler(self, problem: Problem, start: int) -> MapsDown:
        return MapsDown(problem, rows.noise_maps(problem.schedule, self.eta)[1], start)


class MapsUp(Stepper):
    """Step i reveals node i + 1 and solves for its map; every so often the network is asked about the nodes ahead."""

    keep = ("maps",)

    def __init__(self, method: NoiseMaps, problem: Problem) -> None:
        schedule = problem.schedule
        self.kernels, self.chunk, self.steps = problem.kernels, method.chunk, range(schedule.num_steps)
        self.diffuse = problem.place(rows.diffuse(schedule))
        self.table = problem.place_guided(rows.noise_maps(schedule, method.eta)[0])
        self.times = schedule.t[1:].to(problem.device)
        self.draw = lambda shape: problem.draw(shape, method.seed)

    @property
    def phases(self) -> tuple[range, ...]:
        return one_by_one(self.steps)

    def init(self, state: State) -> State:
        """All latents of the way at once, "path" (B, N, C, h, w), and room for the maps."""
        x, steps = state["latents"], len(self.steps)
        noise = self.draw((len(x), steps, *x.shape[1:]))
        each = torch.arange(steps, device=x.device).repeat(len(x))
        inputs = x.repeat_interleave(steps, 0), noise.flatten(0, 1)
        path = self.kernels.lincomb(inputs, self.diffuse, each)[0].unflatten(0, (len(x), steps))
        return {"latents": x, "path": path, "maps": torch.zeros_like(path)}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x, path, maps = state["latents"], state["path"], state["maps"]
        size = max(1, self.chunk // len(x))
        ahead = state.get("ahead")  # the network's outputs, (branches, nodes, B, C, h, w)
        if step.i % size == 0:
            nodes = slice(step.i, step.i + size)
            ahead = torch.stack(predict.many(path[:, nodes].transpose(0, 1), self.times[nodes]))
        inputs = (x, path[:, step.i], *ahead[:, step.i % size])
        latents, maps[:, step.i] = self.kernels.lincomb(inputs, self.table, step.index)
        return {"latents": latents, "path": path, "maps": maps, "ahead": ahead}, None


class MapsDown(Stepper):
    """x_a = mu(x_b) + s z, the map of each step in its turn."""

    keep = ("maps",)
    reusable = True

    def __init__(self, problem: Problem, table: torch.Tensor, start: int) -> None:
        self.kernels, self.table = problem.kernels, problem.place_guided(table)
        self.steps, self.nodes = range(start - 1, -1, -1), problem.schedule.num_steps

    def init(self, state: State) -> State:
        x, maps = state["latents"], state.get("maps")
        if maps is None or maps.shape != (len(x), self.nodes, *x.shape[1:]):
            got = "none" if maps is None else str(tuple(maps.shape))
            raise ValueError(
                f"NoiseMaps samples with the maps of an inversion on the same grid, expected state 'maps' of shape "
                f"{(len(x), self.nodes, *x.shape[1:])}, got {got}"
            )
        return {"latents": x, "maps": maps}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x, maps = state["latents"], state["maps"]
        # A step's number may lie on the device, where nothing else is indexed by it.
        index = torch.as_tensor(step.index, device=x.device).reshape(1)
        z = maps.index_select(1, index).squeeze(1)
        new = self.kernels.lincomb((x, z, *predict(x, step.t)), self.table, step.index)[0]
        return {"latents": new, "maps": maps}, None
