"""The noise schedule as a grid of nodes: x = alpha * data + sigma * noise at every node.

Node 0 is the data end and node N the noise end. Step i joins node i (its source) and node i + 1 (its target). The
network is asked at the target's time, as in diffusers' DDIMInverseScheduler; who asks elsewhere, as BDIA and O-BELM do
from their second step on, says so (DESIGN.md, section 6).
Levels preserve variance, alpha^2 + sigma^2 = 1, but those of a rectified flow, alpha + sigma = 1. Where they come from:
betas.py, flows.py, multistep.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import torch

from invfast import betas, flows, multistep, plain
from invfast.ambient import neutral
from invfast.betas import ROUNDING

FLOW = "flow"
"""The prediction type of networks whose output is noise - data (arXiv 2209.03003)."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", FLOW)
COMPATS = (None, "diffusers")

NEGLIGIBLE = 8 * ROUNDING
"""A share of the power, alpha^2 or its like, that counts as none: schedulers write 2^-24 where they mean 0.

Who divides by its root, 9.8e-4, amplifies errors a thousandfold, and a network's output in float32 is a few 1e-7 off
to begin with. The bundled network, its last level replaced, is rebuilt at 34 dB where alpha^2 is 2^-14, at 9 where it
is 2^-18, at 3 at 2^-19.25 and at -3 at 2^-20.5 (30 Anderson evaluations a step); this is 2^-20.
"""


def check_strength(strength: float) -> None:
    """Raises TypeError or ValueError where it is no share of a grid, in (0, 1]."""
    if not isinstance(strength, Real) or isinstance(strength, bool):
        raise TypeError(f"strength must be a number in (0, 1], got {strength!r}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength!r}")


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a grid as it is taken, in either direction.

    Args:
        i: its number: it joins nodes i and i + 1.
        index: the same as a table's index: an int, or int64 () on the device where one captured graph serves all steps.
        source_t: () time of node i, on the device.
        t: () time of node i + 1, at which the network is asked, on the device.
        middle_t: () time halfway, at which second-order methods of rectified flow ask.
    """

    i: int
    index: int | torch.Tensor
    source_t: torch.Tensor
    t: torch.Tensor
    middle_t: torch.Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """N steps over N + 1 nodes, float64 on the CPU.

    Args:
        t: (N + 1,) times of the nodes, ascending, in the network's own unit. `t[0]` labels the data end; the network
            is asked there only where a method is told to begin at the source's time.
        alpha: (N + 1,) signal levels, sqrt(alphas_cumprod) or 1 - sigma of a flow, floats in [0, 1], descending by
            more than rounding.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow".
        source_alpha: (N,) source level of each step where it is not the level of the node before. Only grids that copy
            diffusers' own schedulers need it, see `compat`.
        compat: None, or "diffusers": steps are those of DDIMInverseScheduler and DDIMScheduler to the letter, that is
            every step spans num_train_timesteps // N whatever the grid, and the inverse step reads a v-prediction or
            sample output with the level of its source. For parity only: for those two types the inverse step is then
            not the inverse of the sampling step.
        origin: provenance, words only (scheduler class, spacing, timesteps asked for).
        dropped: steps before the first that were left out, for they repeat the data's level and move nothing: one where
            a leading grid has steps_offset=0. What a method counts in steps (`length`) counts them, as published code
            does.
        beyond: steps behind the last that this grid, the cleaner part of a longer one, leaves out; counted likewise.

    Two are equal that have the same digest, wherever they come from.

    Raises:
        ValueError: levels that do not descend, are not finite or leave [0, 1]; an unknown prediction type or compat; a
            grid on which the network's output cannot be turned into a step: epsilon at alpha = 0, sample at sigma = 0,
            up to what is `NEGLIGIBLE`.
    """

    t: torch.Tensor
    alpha: torch.Tensor
    prediction_type: str = "epsilon"
    source_alpha: torch.Tensor | None = None
    compat: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    dropped: int = 0
    beyond: int = 0

    __repr__ = plain.line

    @neutral()
    def __post_init__(self) -> None:
        t = torch.as_tensor(self.t).detach().to("cpu", copy=True)
        alpha = _levels("alpha", self.alpha)
        source = alpha[:-1].clone() if self.source_alpha is None else _levels("source_alpha", self.source_alpha)
        if source.shape == alpha[:-1].shape:  # a node's level that was rounded on another way is still that node's
            source = torch.where((source - alpha[:-1]).abs() <= ROUNDING * alpha[:-1], alpha[:-1], source)
        vars(self).update(t=t, alpha=alpha, source_alpha=source)  # a frozen dataclass refuses to be set
        _check_levels(self)
        _check_solvable(self)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Schedule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def num_steps(self) -> int:
        """Number of steps N, each of which costs at least one evaluation."""
        return len(self.alpha) - 1

    @property
    def length(self) -> int:
        """Number of steps as published settings count them: those that move nothing or were left out among them."""
        return self.dropped + self.num_steps + self.beyond

    def cleaner(self, strength: float) -> Schedule:
        """The part of the grid that img2img of diffusers walks, from the data: int(strength N) steps of N = `length`.

        Of a flow its pipelines round up. A strength of 1 is the whole grid.

        Raises:
            TypeError: it is no number.
            ValueError: it lies outside (0, 1], or takes no step.
        """
        check_strength(strength)
        walked = min(self.length * float(strength), self.length)
        taken = self.length - int(self.length - walked) if self.prediction_type == FLOW else int(walked)
        steps = min(taken - self.dropped, self.num_steps)
        if steps == self.num_steps:
            return self
        if steps < 1:
            raise ValueError(
                f"strength={strength:g} takes none of the {self.length} steps that would move anything; take a greater "
                "one, or more steps"
            )
        part = {name: getattr(self, name)[: steps + 1] for name in ("t", "alpha")}
        origin = {**self.origin, "strength": float(strength)}
        beyond = self.length - self.dropped - steps
        return replace(self, **part, source_alpha=self.source_alpha[:steps], origin=origin, beyond=beyond)

    @property
    def sigma(self) -> torch.Tensor:
        """(N + 1,) noise levels, sqrt(1 - alpha^2), or 1 - alpha of a flow."""
        return self._noise(self.alpha)

    @property
    def source_sigma(self) -> torch.Tensor:
        """(N,) noise level of each step's source."""
        return self._noise(self.source_alpha)

    def _noise(self, alpha: torch.Tensor) -> torch.Tensor:
        return 1 - alpha if self.prediction_type == FLOW else (1 - alpha**2).sqrt()

    def on(self, device: torch.device | str) -> tuple[Step, ...]:
        """Every step with its times on a device: copied once, before the loop."""
        times, middle = self.t.to(device).unbind(), self.middle_t.to(device).unbind()
        return tuple(Step(i, i, times[i], times[i + 1], middle[i]) for i in range(self.num_steps))

    @property
    def middle_t(self) -> torch.Tensor:
        """(N,) times halfway between nodes of a flow; elsewhere, where no method asks there, those of the targets."""
        return (self.t[:-1] + self.t[1:]) / 2 if self.prediction_type == FLOW else self.t[1:]

    @property
    def asked(self) -> torch.Tensor:
        """All times at which the network may be asked."""
        return torch.cat([self.middle_t, self.t]) if self.prediction_type == FLOW else self.t

    @property
    def digest(self) -> str:
        """SHA-256 over nodes, levels, prediction type, compat and steps left out, in hexadecimal."""
        left_out = f"|{self.dropped}|{self.beyond}" if self.dropped or self.beyond else ""
        sha = hashlib.sha256(f"{self.prediction_type}|{self.compat}{left_out}".encode())
        for part in (self.t.double(), self.alpha, self.source_alpha):
            sha.update(part.contiguous().numpy().tobytes())
        return sha.hexdigest()

    @classmethod
    @neutral()
    def from_scheduler(
        cls,
        scheduler: Any,
        num_inference_steps: int = 50,
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        compat: str | None = None,
        mu: float | None = None,
        sampler: str | None = None,
    ) -> Schedule:
        """The DDIM grid of a diffusers scheduler, or Euler's of one of rectified flow; it is read, never changed.

        Betas come from `scheduler.alphas_cumprod`; spacing, offset and final level from its config with DDIMScheduler's
        own defaults, which is what `DDIMScheduler.from_config(scheduler.config)` would visit (clipping left out).
        Nodes that repeat a level are dropped: they would cost an evaluation and move nothing (`dropped` counts those at
        the data end). Of a flow, nodes are those of the scheduler itself, as its pipeline sets it.

        Args:
            scheduler: any diffusers scheduler with a table of `alphas_cumprod` (DDIM, DDPM, PNDM, Euler, DPM, ...), or
                of rectified flow (FlowMatchEulerDiscreteScheduler, or a solver with use_flow_sigmas).
            num_inference_steps: 1 to num_train_timesteps; ignored when `timesteps` or `sigmas` are given.
            timesteps: explicit times, monotonic, each in 0 .. num_train_timesteps - 1; not of a flow.
            sigmas: of a flow explicit levels in (0, 1], monotonic, which the scheduler shifts like its own.
            compat: None or "diffusers", see the class; a flow's grid is the same either way.
            mu: of a flow whose shift depends on the image's size, what its pipeline makes of that.
            sampler: None, or "DPMSolverMultistepScheduler" for that one's grid, whatever this one's class.

        Raises:
            TypeError: `num_inference_steps` or a timestep is no integer, or sigmas are no numbers.
            ValueError: neither a table of alphas_cumprod within [0, 1] nor rectified flow; steps, times or sigmas out
                of range, or such as this scheduler does not take; no mu where the shift needs one; or a grid that
                `Schedule` refuses.
        """
        if compat not in COMPATS:
            raise ValueError(f"unknown compat {compat!r}; expected None or 'diffusers'")
        if sampler not in (None, multistep.NAME):
            raise ValueError(f"unknown sampler {sampler!r}; expected None or {multistep.NAME!r}")
        if flows.is_flow(scheduler):
            if sampler:
                multistep.check_flow(scheduler, len(sigmas) if sigmas is not None else num_inference_steps)
            return cls._of_flow(scheduler, num_inference_steps, timesteps, sigmas, mu)
        if sigmas is not None:
            raise ValueError(
                f"sigmas are for schedulers of rectified flow, got {type(scheduler).__name__}; pass timesteps"
            )
        kind = scheduler.config.get("prediction_type", "epsilon")
        if sampler:
            if compat:
                raise ValueError(f"compat='diffusers' is for DDIM's grid; leave it out with sampler={sampler!r}")
            t, alpha, origin = multistep.nodes(scheduler, num_inference_steps, timesteps)
            return cls(t, alpha, kind, origin=origin)
        t, alpha, source, origin, dropped = betas.nodes(scheduler, num_inference_steps, timesteps, compat)
        return cls(t, alpha, kind, source if compat else None, compat, origin, dropped)

    @classmethod
    def _of_flow(
        cls,
        scheduler: Any,
        steps: int,
        timesteps: Sequence[int] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
    ) -> Schedule:
        if timesteps is not None:
            raise ValueError(f"{type(scheduler).__name__} is of rectified flow; pass sigmas in place of timesteps")
        t, levels = flows.nodes(scheduler, steps, sigmas, mu)
        origin = {"scheduler": type(scheduler).__name__, "grid": "Euler", "sigmas": levels.tolist()}
        return cls(t=t, alpha=1 - levels, prediction_type=FLOW, origin=origin)


def _levels(name: str, given: Any) -> torch.Tensor:
    """Levels as float64 on the CPU, a copy."""
    if isinstance(given, torch.Tensor) and (given.is_complex() or given.dtype == torch.bool):
        raise ValueError(f"{name} must be real numbers in [0, 1], got {given.dtype}")
    return torch.as_tensor(given, dtype=torch.float64).detach().to("cpu", copy=True)


def _check_levels(schedule: Schedule) -> None:
    t, alpha, source = schedule.t, schedule.alpha, schedule.source_alpha
    if schedule.prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction_type {schedule.prediction_type!r}; expected one of {PREDICTION_TYPES}")
    if schedule.compat not in COMPATS:
        raise ValueError(f"unknown compat {schedule.compat!r}; expected None or 'diffusers'")
    if alpha.ndim != 1 or len(alpha) < 2 or t.shape != alpha.shape or source.shape != (len(alpha) - 1,):
        raise ValueError(
            "a schedule needs t and alpha of one length N + 1 >= 2 (and source_alpha of length N); got "
            f"{tuple(t.shape)}, {tuple(alpha.shape)} and {tuple(source.shape)}"
        )
    for name in ("dropped", "beyond"):
        count = getattr(schedule, name)
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 0:
            raise ValueError(f"{name} must be an integer of at least 0, got {count!r}")
    for name, level in (("alpha", alpha), ("source_alpha", source)):
        if not bool(((level >= 0) & (level <= 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1], got {level.tolist()}")
    moved = torch.maximum(source - alpha[1:], schedule.sigma[1:] - schedule.source_sigma)
    if not bool((alpha[1:] < alpha[:-1]).all() and (moved > ROUNDING).all()):
        raise ValueError(
            f"alpha must descend strictly from data to noise, by more than float32 rounds away, got {alpha.tolist()}"
        )
    if t.is_complex() or t.dtype == torch.bool or not bool((t[1:-1] < t[2:]).all() and t.isfinite().all()):
        raise ValueError(f"t must be numbers that ascend strictly from node 1 on, got {t.tolist()}")


def _check_solvable(schedule: Schedule) -> None:
    """Refuses steps that cannot be undone: what one side has of the other is next to nothing, `NEGLIGIBLE`."""
    kind, alpha, source = schedule.prediction_type, schedule.alpha[1:], schedule.source_alpha
    sigma, source_sigma = schedule.sigma[1:], schedule.source_sigma
    if kind == "epsilon" and float(alpha[-1]) ** 2 <= NEGLIGIBLE:
        raise ValueError(
            f"epsilon prediction cannot be read at alpha = {float(alpha[-1]):.3g} (t={schedule.t[-1].item()}, zero "
            "terminal SNR); use a 'leading' grid, fewer timesteps, or a v-prediction model"
        )
    if kind == "v_prediction" and float((alpha * source + sigma * source_sigma).min()) ** 2 <= NEGLIGIBLE:
        raise ValueError("a step from alpha = 1 to alpha = 0 cannot be inverted from a v-prediction; use more steps")
    if kind == "sample" and float(source_sigma.min()) ** 2 <= NEGLIGIBLE:
        raise ValueError(
            f"sample prediction cannot be inverted from alpha = {float(source.max()):.3g} (set_alpha_to_one=True): the "
            "last sampling step forgets its input; use a scheduler config with set_alpha_to_one=False"
        )
