"""Implicit inversion, one image at a time (Pan et al., ICCV 2023; Uni-Inv: arXiv 2504.13109)."""

from __future__ import annotations

import math

import torch

from invfast.reference.ddim import Grid, Model, noised_up, split


def invert(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    iterations: int = 3,
    mixing: str = "plain",
    history: int = 0,
    tolerance: float = 0.0,
    floor: float = 0.0,
    window: int = 3,
    cold_first: bool = False,
    extra: int | None = None,
    reserve: int = 3,
    first_t: int | None = None,
) -> torch.Tensor:
    """x is one image (1, C, h, w); `history` is how many past noises the warm start extrapolates, 0 starts cold.

    Without a past noise the first step asks for one, at the target's time or at its own, `first_t`; with `cold_first`
    it begins at its own latent. `extra` is how many evaluations all steps together may take beyond one each, the first
    of them leaving `reserve` to the others. With a tolerance a residual below `floor`, which may be rounding, also ends
    a step, once it is no less than the one before.
    """
    left = math.inf if extra is None else extra
    noises: list[torch.Tensor] = []  # latest last
    levels: list[float] = []
    for t, abar_source, abar_target in grid:

        def noise_at(y: torch.Tensor, t: int = t, abar_target: float = abar_target) -> torch.Tensor:
            return split(model(y, t), y, abar_target, prediction_type)[1]

        def up(noise: torch.Tensor, x: torch.Tensor = x, a: float = abar_source, b: float = abar_target):
            return noised_up(x, noise, a, b)

        level = math.sqrt(1 - abar_target)
        y = x
        if history and not noises:
            if first_t is not None:
                y = up(split(model(x, first_t), x, abar_source, prediction_type)[1])
            elif not cold_first:
                y = up(noise_at(x))
        elif history:
            y = up(extrapolate(noises[-history:], levels[-history:], level))
        values: list[torch.Tensor] = []
        iterates: list[torch.Tensor] = []
        residuals: list[float] = []
        for k in range(iterations):
            noise = noise_at(y)
            f = up(noise)
            values.append(f)
            iterates.append(y)
            residuals.append(float((f - y).norm() / f.norm()))
            falls = k == 0 or residuals[-1] < residuals[-2]
            if tolerance and residuals[-1] < (tolerance if falls else max(floor, tolerance)):
                y = f
                break
            last = k + 1 < iterations and left <= (0 if noises else reserve)
            left -= 0 if last or k + 1 == iterations else 1
            if mixing == "plain" or len(values) == 1:
                y = f
            elif mixing == "averaged":
                y = (values[-1] + values[-2]) / 2
            else:
                y = anderson(values[-window:], iterates[-window:])
            if last:
                break
        x = y
        noises.append(noise)
        levels.append(level)
    return x


def extrapolate(noises: list[torch.Tensor], levels: list[float], level: float) -> torch.Tensor:
    """The polynomial through (level_j, noise_j) at `level`, by Neville's scheme; the last noise where it is unsafe."""
    weights = []
    for j, at in enumerate(levels):
        weight = 1.0
        for k, other in enumerate(levels):
            if k != j:
                weight *= (level - other) / (at - other)
        weights.append(weight)
    if sum(map(abs, weights)) > 16:
        return noises[-1]
    total = torch.zeros_like(noises[0])
    for weight, noise in zip(weights, noises, strict=True):
        total = total + weight * noise
    return total


def anderson(values: list[torch.Tensor], iterates: list[torch.Tensor]) -> torch.Tensor:
    """The affine combination of values with the least combined residual."""
    residuals = [(f - y).flatten().double() for f, y in zip(values, iterates, strict=True)]
    norms = [float(r.norm()) for r in residuals]
    if min(norms) == 0:
        return values[-1]
    m = len(values)
    gram = torch.tensor(
        [[float(a @ b) / (norms[i] * norms[j]) for j, b in enumerate(residuals)] for i, a in enumerate(residuals)],
        dtype=torch.float64,
    )
    raw = torch.linalg.solve(gram + 1e-10 * torch.eye(m).double(), torch.tensor([1 / n for n in norms]).double())
    weights = [float(raw[j]) / norms[j] for j in range(m)]
    weights = [w / sum(weights) for w in weights]
    if not all(map(math.isfinite, weights)) or sum(map(abs, weights)) > 1e3:
        return values[-1]
    total = torch.zeros_like(values[0])
    for w, f in zip(weights, values, strict=True):
        total = total + w * f
    return total
