"""DPM-Solver++(2M) (Lu et al., arXiv 2211.01095) both ways, one image at a time, and the decoder's inversion
(Hong et al., arXiv 2409.18442), long-hand.

A grid here is of nodes: `times` of the noisy ones, and (alpha, sigma) of all, the data end first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from invfast.reference.ddim import Model, split
from invfast.reference.fixed_point import anderson, extrapolate

Levels = Sequence[tuple[float, float]]


def sample(
    model: Model, x: torch.Tensor, times: Sequence[int], levels: Levels, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """x_0 of x_T."""
    before = None
    for i in reversed(range(len(times))):
        clean, _ = split(model(x, times[i]), x, levels[i + 1][0] ** 2, prediction_type)
        use = clean
        if before is not None and not _first_order(i, levels):
            ratio = (_snr(levels[i + 1]) - _snr(levels[i + 2])) / (_snr(levels[i]) - _snr(levels[i + 1]))
            use = clean + (clean - before) / (2 * ratio)
        x, before = _moved(x, use, levels[i], levels[i + 1]), clean
    return x


def invert(
    model: Model,
    x: torch.Tensor,
    times: Sequence[int],
    levels: Levels,
    prediction_type: str = "epsilon",
    *,
    tolerance: float = 1e-3,
    iterations: int = 20,
    floor: float = 0.0,
) -> torch.Tensor:
    """x_T of one image (1, C, h, w).

    Step i solves `sample`'s for x_{i+1}, its `before` the polynomial in log(alpha / sigma) through the last three data
    predictions, the step's own among them.
    """
    noises: list[torch.Tensor] = []
    cleans: list[torch.Tensor] = []
    for i, t in enumerate(times):
        low, high = levels[i], levels[i + 1]
        y = x
        if noises:
            count = min(2, len(noises))
            noise = extrapolate(noises[-count:], [levels[i + 1 - count + k][1] for k in range(count)], high[1])
            y = high[0] * (x - low[1] * noise) / low[0] + high[1] * noise
        values: list[torch.Tensor] = []
        iterates: list[torch.Tensor] = []
        residuals: list[float] = []
        for _ in range(iterations):
            _, noise = split(model(y, t), y, high[0] ** 2, prediction_type)
            f = _solved(x, noise, i, levels, cleans)
            values.append(f)
            iterates.append(y)
            residuals.append(float((f - y).norm() / f.norm()))
            falls = len(residuals) == 1 or residuals[-1] < residuals[-2]
            if tolerance and residuals[-1] < (tolerance if falls else max(floor, tolerance)):
                y = f
                break
            y = f if len(values) == 1 else anderson(values[-3:], iterates[-3:])
        x = y
        noises.append(noise)
        cleans.append((x - high[1] * noise) / high[0])
    return x


def _solved(x: torch.Tensor, noise: torch.Tensor, i: int, levels: Levels, cleans: list[torch.Tensor]) -> torch.Tensor:
    """The x_{i+1} whose step, with this noise in it, ends at x: the step is linear in it."""
    low, high = levels[i], levels[i + 1]
    own, rest = 1.0, torch.zeros_like(x)  # what stands for the data prediction: own D + rest
    if i + 2 < len(levels) and not _first_order(i, levels):
        ratio = (_snr(high) - _snr(levels[i + 2])) / (_snr(low) - _snr(high))
        known = [_snr(high), *(_snr(levels[i - k]) for k in range(min(2, len(cleans))))]
        weights = _lagrange(known, _snr(levels[i + 2]))
        own += (1 - weights[0]) / (2 * ratio)
        for weight, clean in zip(weights[1:], reversed(cleans), strict=False):
            rest = rest - weight / (2 * ratio) * clean
    kept = low[1] / high[1]
    ahead = low[0] - high[0] * kept
    # x = kept y + ahead (own (y - sigma noise) / alpha + rest)
    return (x - ahead * rest + ahead * own * high[1] / high[0] * noise) / (kept + ahead * own / high[0])


def _moved(x: torch.Tensor, clean: torch.Tensor, low: tuple[float, float], high: tuple[float, float]) -> torch.Tensor:
    """The first-order step with a data prediction, in the paper's form where there is noise left."""
    if low[1] == 0:
        return low[0] * clean
    h = _snr(low) - _snr(high)
    return low[1] / high[1] * x - low[0] * math.expm1(-h) * clean


def _first_order(i: int, levels: Levels) -> bool:
    return i == 0 and (levels[0][1] == 0 or len(levels) - 1 < 15)


def _snr(level: tuple[float, float]) -> float:
    alpha, sigma = level
    return math.inf if sigma == 0 else math.log(alpha / sigma)


def _lagrange(known: list[float], wanted: float) -> list[float]:
    weights = []
    for j, own in enumerate(known):
        weight = 1.0
        for k, other in enumerate(known):
            if k != j:
                weight *= (wanted - other) / (own - other)
        weights.append(weight)
    return weights if sum(map(abs, weights)) <= 16 else [1.0] + [0.0] * (len(known) - 1)


def invert_decoder(
    again: Callable[[torch.Tensor], torch.Tensor], target: torch.Tensor, iterations: int, step: float, momentum: float
) -> tuple[torch.Tensor, float]:
    """One image's latents (1, C, h, w) and residual; `again` is z -> E(D(z)), target E(x)."""
    before, z = target, target
    found: list[tuple[float, torch.Tensor]] = []
    for _ in range(iterations):
        y = z + momentum * (z - before)
        gap = again(y) - target
        found.append((float(gap.norm() / target.norm()), y))
        before, z = z, y - step * gap
    residual, best = min(found, key=lambda each: each[0])
    return best, residual
