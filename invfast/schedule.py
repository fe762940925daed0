"""The noise schedule as a grid of nodes: x = alpha * data + sigma * noise at every node.

Node 0 is the data end and node N the noise end. Step i joins node i (its source) and node i + 1 (its target), and the
network is always asked at the target's time, as in diffusers' DDIMInverseScheduler and in every method built here.
Grids follow diffusers' DDIMScheduler (Song et al., arXiv 2010.02502; spacings: Lin et al., arXiv 2305.08891, table 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from diffusers import DDIMScheduler

from invfast.ambient import neutral

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
COMPATS = (None, "diffusers")

ROUNDING = torch.finfo(torch.float32).eps
"""Levels no farther apart than this are one: what they differ by is rounding."""
NEGLIGIBLE = 8 * ROUNDING
"""A share of the power, alpha^2 or its like, that counts as none: schedulers write 2^-24 where they mean 0.

Who divides by its root, 9.8e-4, amplifies errors a thousandfold, and a network's output in float32 is a few 1e-7 off
to begin with. The bundled network, its last level replaced, is rebuilt at 34 dB where alpha^2 is 2^-14, at 9 where it
is 2^-18, at 3 at 2^-19.25 and at -3 at 2^-20.5 (30 Anderson evaluations a step); this is 2^-20.
"""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a grid as it is taken, in either direction.

    Args:
        i: its number: it joins nodes i and i + 1.
        index: the same as a table's index: an int, or int64 () on the device where one captured graph serves all steps.
        source_t: () time of node i, on the device.
        t: () time of node i + 1, at which the network is asked, on the device.
    """

    i: int
    index: int | torch.Tensor
    source_t: torch.Tensor
    t: torch.Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """N steps over N + 1 nodes, float64 on the CPU.

    Args:
        t: (N + 1,) times of the nodes, ascending, in the network's own unit. `t[0]` only labels the data end: the
            network is never asked there.
        alpha: (N + 1,) signal levels sqrt(alphas_cumprod), floats in [0, 1], descending by more than rounding.
        prediction_type: "epsilon", "v_prediction" or "sample".
        source_alpha: (N,) source level of each step where it is not the level of the node before. Only grids that copy
            diffusers' own schedulers need it, see `compat`.
        compat: None, or "diffusers": steps are those of DDIMInverseScheduler and DDIMScheduler to the letter, that is
            every step spans num_train_timesteps // N whatever the grid, and the inverse step reads a v-prediction or
            sample output with the level of its source. For parity only: for those two types the inverse step is then
            not the inverse of the sampling step.
        origin: provenance, words only (scheduler class, spacing, timesteps asked for).

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
    def sigma(self) -> torch.Tensor:
        """(N + 1,) noise levels sqrt(1 - alpha^2)."""
        return (1 - self.alpha**2).sqrt()

    @property
    def source_sigma(self) -> torch.Tensor:
        """(N,) noise level of each step's source."""
        return (1 - self.source_alpha**2).sqrt()

    def on(self, device: torch.device | str) -> tuple[Step, ...]:
        """Every step with its times on a device: copied once, before the loop."""
        times = self.t.to(device).unbind()
        return tuple(Step(i, i, times[i], times[i + 1]) for i in range(self.num_steps))

    @property
    def digest(self) -> str:
        """SHA-256 over nodes, levels, prediction type and compat, in hexadecimal."""
        sha = hashlib.sha256(f"{self.prediction_type}|{self.compat}".encode())
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
        compat: str | None = None,
    ) -> Schedule:
        """The DDIM grid of a diffusers scheduler; the scheduler is read, never changed.

        Betas come from `scheduler.alphas_cumprod`; spacing, offset and final level from its config with DDIMScheduler's
        own defaults, which is what `DDIMScheduler.from_config(scheduler.config)` would visit (clipping left out).
        Nodes that repeat a level are dropped: they would cost an evaluation and move nothing.

        Args:
            scheduler: any diffusers scheduler with a table of `alphas_cumprod` (DDIM, DDPM, PNDM, Euler, DPM, ...).
            num_inference_steps: 1 to num_train_timesteps; ignored when `timesteps` are given.
            timesteps: explicit times, monotonic, each in 0 .. num_train_timesteps - 1.
            compat: None or "diffusers", see the class.

        Raises:
            TypeError: `num_inference_steps` or a timestep is no integer.
            ValueError: no table of alphas_cumprod within [0, 1], steps or times out of range, or a grid that `Schedule`
                refuses.
        """
        table, rounding = _alphas_cumprod(scheduler)
        config = scheduler.config
        if compat not in COMPATS:
            raise ValueError(f"unknown compat {compat!r}; expected None or 'diffusers'")
        if timesteps is None:
            times = _spaced(config, len(table), num_inference_steps)
            stride = len(table) // num_inference_steps
        else:
            times, stride = _explicit(timesteps, len(table)), len(table)  # the last sampling step goes to the end
            if compat:
                raise ValueError("compat='diffusers' has no explicit timesteps: DDIMScheduler takes a number of steps")
        final = 1.0 if config.get("set_alpha_to_one", True) else float(table[0])
        origins = [t - stride for t in times] if compat else [times[0] - stride, *times[:-1]]
        alpha, source = (
            torch.tensor([float(table[t]) if t >= 0 else final for t in each], dtype=torch.float64).sqrt()
            for each in (times, origins)
        )
        keep = _moving(source**2, alpha**2, rounding, chained=not compat)
        if not keep:
            raise ValueError(
                f"the grid visits t={times} only, the data level itself: nothing to invert; use more steps"
            )
        return cls(
            t=torch.tensor([min(0, times[0])] + [times[i] for i in keep]),
            alpha=torch.cat([source[keep[:1]], alpha[keep]]),
            prediction_type=config.get("prediction_type", "epsilon"),
            source_alpha=source[keep] if compat else None,
            compat=compat,
            origin={
                "scheduler": type(scheduler).__name__,
                "timestep_spacing": "explicit" if timesteps is not None else config.get("timestep_spacing", "leading"),
                "grid": "DDIM" if compat is None else "diffusers DDIMInverseScheduler",
                "timesteps": times,
            },
        )


def _levels(name: str, given: Any) -> torch.Tensor:
    """Levels as float64 on the CPU, a copy."""
    if isinstance(given, torch.Tensor) and (given.is_complex() or given.dtype == torch.bool):
        raise ValueError(f"{name} must be real numbers in [0, 1], got {given.dtype}")
    return torch.as_tensor(given, dtype=torch.float64).detach().to("cpu", copy=True)


def _alphas_cumprod(scheduler: Any) -> tuple[torch.Tensor, float]:
    """The table in float64, and what its own dtype rounds by."""
    table, name = getattr(scheduler, "alphas_cumprod", None), type(scheduler).__name__
    if not isinstance(table, torch.Tensor) or table.ndim != 1:
        raise ValueError(
            f"scheduler {name} has no table of alphas_cumprod; "
            "pass schedule=Schedule(t=..., alpha=...) built from its sigmas (alpha = 1 / sqrt(1 + sigma^2))"
        )
    if not table.is_floating_point() or not bool(((table >= 0) & (table <= 1)).all()):
        raise ValueError(
            f"alphas_cumprod of scheduler {name} must be floats in [0, 1], got {table.dtype}"
            + (" with others, or non-finite ones" if table.is_floating_point() else "")
            + "; make the scheduler anew from its config"
        )
    return table.detach().double().cpu(), max(ROUNDING, torch.finfo(table.dtype).eps)


def _spaced(config: Mapping[str, Any], train_steps: int, steps: int) -> list[int]:
    """Ascending times of DDIMScheduler's grid."""
    if not isinstance(steps, Integral) or isinstance(steps, bool):
        raise TypeError(f"num_inference_steps must be an integer from 1 to {train_steps}, got {steps!r}")
    if not 1 <= steps <= train_steps:
        raise ValueError(f"num_inference_steps must be from 1 to {train_steps}, got {steps}")
    grid = DDIMScheduler(
        num_train_timesteps=train_steps,
        timestep_spacing=config.get("timestep_spacing", "leading"),
        steps_offset=config.get("steps_offset", 0),
    )
    grid.set_timesteps(int(steps))
    times = grid.timesteps.tolist()[::-1]
    if times[-1] >= train_steps:
        raise ValueError(
            f"num_inference_steps={steps} with steps_offset={grid.config.steps_offset} visits t={times[-1]}, "
            f"but the last trained time is {train_steps - 1}; use fewer steps"
        )
    return times


def _explicit(timesteps: Sequence[int], train_steps: int) -> list[int]:
    times = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    if not isinstance(times, Sequence) or isinstance(times, str):
        raise TypeError(f"timesteps must be a sequence of integers, got {timesteps!r}")
    times = list(times)
    if not times:
        raise ValueError("timesteps is empty; expected at least one time")
    for t in times:
        if not isinstance(t, Integral) or isinstance(t, bool):
            raise TypeError(f"timesteps must be integers, got {t!r}")
        if not 0 <= t < train_steps:
            raise ValueError(f"timesteps must lie in 0..{train_steps - 1}, got {t}")
    if times not in (sorted(times), sorted(times, reverse=True)):
        raise ValueError(f"timesteps must be monotonic (diffusers' order is descending), got {times}")
    return [int(t) for t in sorted(times)]


def _moving(source: torch.Tensor, abar: torch.Tensor, rounding: float, chained: bool) -> list[int]:
    """Indices of the steps that go anywhere; in a chain a repeated level, up to its rounding, repeats its node."""
    kept, last = [], float(source[0])
    for i, (a, b) in enumerate(zip(source.tolist(), abar.tolist(), strict=True)):
        start = last if chained else a
        if abs(start - b) > 2 * rounding * start:
            kept.append(i)
            last = b
    return kept


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
