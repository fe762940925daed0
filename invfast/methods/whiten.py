"""Gradient steps that make a predicted noise look like noise: ReNoise's regularisation, after pix2pix-zero.

    e <- e - lambda_kl clip(d/de sum |log(v1/v0) + (v0 + (m0 - m1)^2) / v1 - 1|, +-100)
    e <- e - lambda_ac / 5  d/de sum (mean e roll(e, r, H))^2 + (mean e roll(e, r, W))^2         five times

and that four times over (Garibi et al., ECCV 2024, section 3.3 and its code). m and v are mean and variance of every
patch of 4 x 4 in every channel, 0 those of e and 1 those of a reference; the second sum runs over channels and over a
pyramid of halved planes down to 8. The gradients are written out: nothing here needs autograd.

Plain areas have patches without variance, 1/v explodes there, and such images came out black or NaN. So variances have
a floor, below which they are not moved; and a step that is not finite or longer than the noise itself, as fixed rates
give it where the noise is large, is left out, image by image. Shifts are drawn from 1 on: the published 0 compares a
plane with itself and shrinks it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import avg_pool2d

PATCH, COARSEST = 4, 8
GRADIENT_LIMIT = 100.0
VARIANCE_FLOOR = 1e-2
ROUNDS, ROLLS, LEVELS = 4, 5, 12


def draws(steps: int, calls: int) -> torch.Tensor:
    """Where the shifts come from, (steps, calls, ROUNDS, ROLLS, LEVELS) in [0, 1), float64: one draw for all images."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(steps, calls, ROUNDS, ROLLS, LEVELS, generator=generator, dtype=torch.float64)


def whiten(noise: torch.Tensor, reference: torch.Tensor, drawn: torch.Tensor, kl: float, ac: float) -> torch.Tensor:
    """The noise after all gradient steps.

    Args:
        noise, reference: (B, C, h, w), float32 or float64.
        drawn: (ROUNDS, ROLLS, LEVELS) of `draws`, on the device.
        kl, ac: lambda_kl and lambda_ac; 0 leaves that gradient out.
    """
    # All that does not depend on the noise as it moves is made once.
    wanted = _statistics(reference) if kl and min(noise.shape[2:]) >= PATCH else None
    tables = _roll_tables(drawn, noise.shape[2:]) if ac else []
    for i in range(drawn.shape[0]):
        if wanted is not None:
            noise = _stepped(noise, kl * _patch_gradient(noise, wanted).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT))
        for j in range(drawn.shape[1]) if ac else ():
            rolls = [(rows[i, j], columns[i, j]) for rows, columns in tables]
            noise = _stepped(noise, ac / drawn.shape[1] * _roll_gradient(noise, rolls))
    return noise


def patch_gradient(noise: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed |KL| between the patches of two noises with respect to the first."""
    if min(noise.shape[2:]) < PATCH:
        return torch.zeros_like(noise)
    return _patch_gradient(noise, _statistics(reference))


def _statistics(reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and floored variance of every patch of the reference."""
    variance, mean = torch.var_mean(_patches(reference), -1, keepdim=True)
    return mean, variance.clamp_min(VARIANCE_FLOOR)


def _patch_gradient(noise: torch.Tensor, wanted: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    patches, (m1, v1) = _patches(noise), wanted
    n = patches.shape[-1]
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    gap, v0 = mean - m1, variance.clamp_min(VARIANCE_FLOOR)
    sign = ((v1 / v0).log() + (v0 + gap.square()) / v1 - 1).sign()
    by_mean = 2 * gap / (v1 * n)
    by_variance = torch.where(variance > VARIANCE_FLOOR, 2 / (n - 1) * (1 / v1 - 1 / v0), 0.0)
    return _unpatched(sign * (by_mean + by_variance * (patches - mean)), noise)


def roll_gradient(noise: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed squared autocorrelations of every channel's pyramid; drawn (LEVELS,)."""
    return _roll_gradient(noise, _roll_tables(drawn, noise.shape[2:]))


def _roll_tables(drawn: torch.Tensor, plane: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every level of the pyramid the indices of rows and of columns, rolled there and back, (..., 2 h), (..., 2 w).

    The shifts are numbers on the device, so rolling is a look-up; drawn is (..., LEVELS).
    """
    tables, (height, width) = [], plane
    for level in range(drawn.shape[-1]):
        shift = 1 + (drawn[..., level, None] * max(1, height // 2 - 1)).long()
        tables.append((_there_and_back(shift, height), _there_and_back(shift, width)))
        if min(height, width) <= COARSEST:
            break
        height, width = height // 2, width // 2
    return tables


def _there_and_back(shift: torch.Tensor, size: int) -> torch.Tensor:
    at = torch.arange(size, device=shift.device)
    return torch.cat([(at - shift) % size, (at + shift) % size], -1)


def _roll_gradient(noise: torch.Tensor, tables: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    parts = []
    for dim, index in zip((2, 3), tables[0], strict=True):
        there, back = noise.index_select(dim, index).chunk(2, dim)
        parts.append((noise * there).mean((2, 3), keepdim=True) * (there + back))
    total = (parts[0] + parts[1]) * (2 / noise[0, 0].numel())
    if len(tables) > 1:
        coarse = _roll_gradient(avg_pool2d(noise, 2), tables[1:]) / 4
        h, w = coarse.shape[2:]
        spread = (
            coarse[..., :, None, :, None].expand(*coarse.shape[:2], h, 2, w, 2).reshape(*coarse.shape[:2], 2 * h, 2 * w)
        )
        total[..., : 2 * h, : 2 * w] += spread
    return total


def _patches(x: torch.Tensor) -> torch.Tensor:
    """(B, C, h / 4, w / 4, 16); rows and columns beyond the last whole patch are left out."""
    h, w = x.shape[2] // PATCH, x.shape[3] // PATCH
    cut = x[..., : h * PATCH, : w * PATCH].unflatten(3, (w, PATCH)).unflatten(2, (h, PATCH))
    return cut.transpose(3, 4).flatten(4)


def _unpatched(patches: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(like)
    joined = patches.unflatten(4, (PATCH, PATCH)).transpose(3, 4).flatten(4).flatten(2, 3)
    out[..., : joined.shape[2], : joined.shape[3]] = joined
    return out


def _stepped(noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """noise - step where the step is finite and no longer than the noise; the other images as they are."""
    fits = step.square().flatten(1).sum(1) <= noise.square().flatten(1).sum(1)
    return torch.where(fits.reshape(-1, 1, 1, 1), noise - step, noise)
