"""ReNoise (arXiv 2403.14602), gradients by autograd, and GNRI's published step (arXiv 2312.12540); single images."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import avg_pool2d

from invfast.reference.ddim import Grid, Model, noised_up, split


def invert(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    iterations: int,
    early: tuple[int, int] = (0, 5),
    late: tuple[int, int] = (8, 10),
    lambda_kl: float = 0.0,
    lambda_ac: float = 0.0,
    noise: torch.Tensor | None = None,
    uniform: torch.Tensor | None = None,
    floor: float = 1e-2,
    origin: float = 1.0,
    average: bool = True,
    first_iterations: int | None = None,
) -> torch.Tensor:
    """x is one image (1, C, h, w), of squared signal level `origin`.

    `noise` (1, C, h, w) makes the reference; `uniform` (steps, calls, 4, 5, levels) in [0, 1) chooses the shifts, from
    1 on, or (steps, calls, 4, 5, C, levels) those of each channel, from 0 on. Without `average` the last iterate is
    taken.
    """
    x0 = x
    for i, (t, abar_source, abar_target) in enumerate(grid):
        first, end = early if t < 250 else late

        def noise_at(y: torch.Tensor, t: int = t, abar: float = abar_target) -> torch.Tensor:
            return split(model(y, t), y, abar, prediction_type)[1]

        wanted = None
        if lambda_kl or lambda_ac:
            ratio = math.sqrt(abar_target / origin)
            spread = math.sqrt(1 - abar_target - ratio**2 * (1 - origin))
            wanted = noise_at(ratio * x0 + spread * noise)

        def regular(e: torch.Tensor, call: int, i: int = i, wanted: torch.Tensor | None = wanted) -> torch.Tensor:
            return e if wanted is None else regularise(e, wanted, uniform[i, call], lambda_kl, lambda_ac, floor)

        y, inside, k = x, [], 0
        most = min(iterations, first_iterations or iterations) if t < 250 else iterations
        while k <= most and not (k == end and inside):
            e = noise_at(y)
            if first <= k < end and average:
                inside.append(e)
            chosen = k >= first or (k > 0 and not average)
            y = noised_up(x, regular(e, k) if chosen else e, abar_source, abar_target)
            k += 1
        if inside:
            y = noised_up(x, regular(sum(inside) / len(inside), k), abar_source, abar_target)
        x = y
    return x


def regularise(
    e: torch.Tensor, wanted: torch.Tensor, uniform: torch.Tensor, lambda_kl: float, lambda_ac: float, floor: float
) -> torch.Tensor:
    for each in uniform:
        if lambda_kl:
            e = moved(e, e - lambda_kl * gradient(lambda v: patch_divergence(v, wanted, floor), e).clip(-100, 100))
        new = e
        for shifts in each if lambda_ac else ():
            new = new - lambda_ac / len(each) * gradient(lambda v, s=shifts: autocorrelation(v, s), new)
        e = moved(e, new)
    return e


def moved(e: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new if new.isfinite().all() and (new - e).norm() <= e.norm() else e


def gradient(function, e: torch.Tensor) -> torch.Tensor:
    leaf = e.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def patch_divergence(e: torch.Tensor, wanted: torch.Tensor, floor: float) -> torch.Tensor:
    total = e.sum() * 0
    for channel in range(e.shape[1]):
        for top in range(0, e.shape[2] - 3, 4):
            for left in range(0, e.shape[3] - 3, 4):
                a = e[0, channel, top : top + 4, left : left + 4]
                b = wanted[0, channel, top : top + 4, left : left + 4]
                v0, v1 = a.var().clip(min=floor), b.var().clip(min=floor)
                total = total + (torch.log(v1 / v0) + (v0 + (a.mean() - b.mean()) ** 2) / v1 - 1).abs()
    return total


def autocorrelation(e: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    total, level = 0.0, 0
    while True:
        half = e.shape[2] // 2
        if uniform.ndim == 1:
            shifted = [(e, 1 + int(float(uniform[level]) * max(1, half - 1)))]
        else:
            shifted = [(plane, int(float(u[level]) * half)) for plane, u in zip(e.split(1, 1), uniform, strict=True)]
        for planes, shift in shifted:
            for dim in (2, 3):
                total = total + ((planes * torch.roll(planes, shift, dim)).mean((2, 3)) ** 2).sum()
        if min(e.shape[2:]) <= 8:
            return total
        e, level = avg_pool2d(e, 2), level + 1


def invert_by_sign(
    model: Model,
    x: torch.Tensor,
    grid: Grid,
    prediction_type: str = "epsilon",
    *,
    iterations: int,
    prior: float = 0.0,
) -> torch.Tensor:
    """GNRI's published step, one image at a time; the prior in the scale z / alpha, as its code has it."""
    clean = x
    for t, abar_source, abar_target in grid:
        z, best, least = x, None, math.inf
        for _ in range(iterations):
            f = noised_up(x, split(model(z, t), z, abar_target, prediction_type)[1], abar_source, abar_target)
            alpha, sigma = math.sqrt(abar_target), math.sqrt(1 - abar_target)
            log_q = -0.5 * ((f / alpha - clean) / (sigma / alpha)) ** 2
            size = alpha * float(((f / alpha - z / alpha).abs() - prior * log_q).mean())
            if size < least:
                best, least = f, size
            z = z + size * torch.sign(f - z)
        x = best
    return x
