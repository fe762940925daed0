"""Samplers that can be run backwards exactly: the next latent depends on two, and both are kept.

    EDICT    two latents, each moved with the noise at the other, then mixed (Wallace et al., arXiv 2211.12446)
    BDIA     x_{i-1} = gamma x_{i+1} + DOWN(x_i) - gamma UP(x_i), both with o(x_i) (Zhang et al., arXiv 2307.10829)
    O-BELM   the explicit two-step formula of least error in sigma/alpha (Wang et al., arXiv 2410.07273)

No equation is solved and nothing is iterated; what a run leaves in x_0 is rounding, and what rounding a step amplifies.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch

from invfast import rows
from invfast.methods.base import ENDS, Method, Predict, Problem, State, Stepper, check_choice
from invfast.schedule import Step


@dataclass(frozen=True)
class EDICT(Method):
    """2 N evaluations in either direction. The partner of x_T is kept in the state.

    The way back ends with x and its partner y, which are equal but under another prompt or guidance. x is the result,
    as published; y is `Reconstruction.partner`.

    Args:
        p: weight of a latent itself in the mixing, in (0, 1]; 1 couples the two by their noises alone.
        alternate: whether x and y take turns in moving first, as published; else x always does.

    Raises:
        ValueError: a value outside its range.
    """

    p: float = 0.93
    alternate: bool = True

    def __post_init__(self) -> None:
        _check_fraction("EDICT p", self.p)
        check_choice("EDICT alternate", self.alternate, (True, False))

    def inverter(self, problem: Problem, start: int = 0) -> Coupled:
        first, second = rows.edict(problem.schedule, self.p, self.alternate)[:2]
        return Coupled(problem, first, second, range(start, problem.schedule.num_steps), up=True)

    def sampler(self, problem: Problem, start: int) -> Coupled:
        first, second = rows.edict(problem.schedule, self.p, self.alternate)[2:]
        return Coupled(problem, first, second, range(start - 1, -1, -1), up=False)


@dataclass(frozen=True)
class BDIA(Method):
    """N evaluations, N - 1 on the way back. The latent before x_T is kept in the state.

    Args:
        gamma: in (0, 1]. Below 1 sampling is smoother, and each inversion step multiplies errors by 1 / gamma.
        first: at which end of the first step the network is asked, "target" or "source"; all others ask at the
            source's. The authors' code begins with "source".

    Raises:
        ValueError: a value outside its range, or (when run) a grid whose steps do not join.
    """

    gamma: float = 1.0
    first: str = "target"

    def __post_init__(self) -> None:
        _check_fraction("BDIA gamma", self.gamma)
        check_choice("BDIA first", self.first, ENDS)

    def inverter(self, problem: Problem, start: int = 0) -> TwoStepUp:
        at_source = self.first == "source"
        table = rows.bdia(problem.schedule, self.gamma, start, at_source)[0]
        return TwoStepUp(problem, table, start, "previous", at_source)

    def sampler(self, problem: Problem, start: int) -> TwoStepDown:
        _, *tables = rows.bdia(problem.schedule, self.gamma)
        return TwoStepDown(problem, tables, rows.down(problem.schedule), start, "previous")


@dataclass(frozen=True)
class OBELM(Method):
    """N evaluations, N - 1 on the way back. The noise that took x_{T-1} to x_T, "slope", is kept in the state.

    Args:
        first: as of BDIA. The authors' code begins with "source", and takes the data at alpha = 1, which is the grid of
            a scheduler with set_alpha_to_one=True.

    Raises:
        ValueError: `first` is neither, or (when run) a node at alpha = 0, or a grid whose steps do not join.
    """

    first: str = "target"

    def __post_init__(self) -> None:
        check_choice("OBELM first", self.first, ENDS)

    def inverter(self, problem: Problem, start: int = 0) -> TwoStepUp:
        at_source = self.first == "source"
        return TwoStepUp(problem, rows.obelm(problem.schedule, start, at_source)[0], start, "slope", at_source)

    def sampler(self, problem: Problem, start: int) -> TwoStepDown:
        _, *tables = rows.obelm(problem.schedule)
        return TwoStepDown(problem, tables, rows.noise(problem.schedule), start, "slope")


class TwoStepUp(Stepper):
    """(x_i, carried, o(x_i)) -> (x_{i+1}, carried), asked at node i's own time; the first step is DDIM inversion.

    That one is asked at its target's time, or `at_source` like the others.
    """

    reusable = True

    def __init__(
        self, problem: Problem, table: torch.Tensor, start: int, carried: str, at_source: bool = False
    ) -> None:
        self.kernels, self.table, self.carried = problem.kernels, problem.place_guided(table), carried
        self.at_source = at_source
        self.steps = range(start, problem.schedule.num_steps)
        self.keep = (carried,)

    @property
    def phases(self) -> tuple[range, ...]:
        return self.steps[:1], self.steps[1:]

    def init(self, state: State) -> State:
        return {"latents": state["latents"]}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x = state["latents"]
        carried = state.get(self.carried, x)  # in the first step its coefficients are zero
        at_target = step.i == self.steps.start and not self.at_source
        output = predict(x, step.t if at_target else step.source_t)
        x, carried = self.kernels.lincomb((x, carried, *output), self.table, step.index)
        return {"latents": x, self.carried: carried}, None


class TwoStepDown(Stepper):
    """(x_{i+1}, carried) -> x_i, then (x_{i+1}, carried, o(x_i)) -> carried: what `TwoStepUp` did, undone.

    Step 0 has nothing to ask. Where nothing was carried, as at noise that no inversion found, the first step is DDIM's.
    """

    reusable = True

    def __init__(
        self, problem: Problem, tables: tuple[torch.Tensor, torch.Tensor], begin: torch.Tensor, start: int, carried: str
    ) -> None:
        self.kernels, self.carried = problem.kernels, carried
        self.below, self.table = problem.place(tables[0]), problem.place_guided(tables[1])
        self.begin = problem.place_guided(begin)
        self.steps, self.keep = range(start - 1, -1, -1), (carried,)

    @property
    def phases(self) -> tuple[range, ...]:
        return self.steps[:1], self.steps[1:-1], self.steps[1:][-1:]

    def init(self, state: State) -> State:
        return {name: state[name] for name in ("latents", self.carried) if name in state}

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        x, carried = state["latents"], state.get(self.carried)
        if carried is None:
            carried = self.kernels.lincomb((x, *predict(x, step.t)), self.begin, step.index)[0]
        below = self.kernels.lincomb((x, carried), self.below, step.index)[0]
        if step.i == 0:
            return {"latents": below}, None
        output = predict(below, step.source_t)
        return {
            "latents": below,
            self.carried: self.kernels.lincomb((x, carried, *output), self.table, step.index)[0],
        }, None


class Coupled(Stepper):
    """EDICT's step in two updates. One latent of the pair leads and the other follows; in the next step they swap.

    Down: the leader moves with the noise at the follower, then the follower with the noise at the moved leader, and
    they are mixed. Up: they are unmixed, the follower moves back, then the leader. Mixing is linear and melts into the
    updates. Upwards the network is asked first at the unmixed leader, which is no latent: the update before makes it as
    its second output.

    "latents" is the leader of the step below, and so x itself at the noise end; the last step down ends with x, too.
    Where the two do not alternate the leader is x in all of them.
    """

    keep = ("partner",)
    reusable = True

    def __init__(self, problem: Problem, first: torch.Tensor, second: torch.Tensor, steps: range, up: bool) -> None:
        self.kernels, self.steps, self.up = problem.kernels, steps, up
        self.first, self.second = problem.place_guided(first), problem.place_guided(second)

    def init(self, state: State) -> State:
        x = state["latents"]
        partner = state.get("partner", x)
        return {"latents": x, "partner": partner, "asked": partner}  # upwards x and y begin alike, mixed or not

    def step(self, step: Step, state: State, predict: Predict) -> tuple[State, None]:
        pair, asked = (state["latents"], state["partner"]), state["asked"]
        (moved,) = self.kernels.lincomb((*pair, *predict(asked, step.t)), self.first, step.index)
        inputs = (asked, moved, *predict(moved, step.t))
        latents, following = self.kernels.lincomb(inputs, self.second, step.index)
        return {"latents": latents, "partner": moved if self.up else following, "asked": following}, None


def _check_fraction(name: str, value: float) -> None:
    if not isinstance(value, Real) or not 0 < value <= 1:
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}")
