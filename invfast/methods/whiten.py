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

import torch
import torch.nn.functional as F

PATCH, COARSEST = 4, 8
GRADIENT_LIMIT = 100.0
VARIANCE_FLOOR = 1e-2
ROUNDS, ROLLS, LEVELS = 4, 5, 12


def draws(steps: int, calls: int) -> torch.Tensor:
    """Where the shifts come from, (steps, calls, ROUNDS, ROLLS, LEVELS) in [0, 1), float64: one draw for all images."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(steps, calls, ROUNDS, ROLLS, LEVELS, generator=generator, dtype=torch.float64)


class Whitener:
    """All gradient steps, for noises of one size; what does not depend on the noise is made once.

    Args:
        like: (B, C, h, w), float32 or float64: a noise, of which only height, width, dtype and device count.
        kl, ac: lambda_kl and lambda_ac; 0 leaves that gradient out.
    """

    def __init__(self, like: torch.Tensor, kl: float, ac: float) -> None:
        self.kl = kl if min(like.shape[2:]) >= PATCH else 0
        self.ac, self.tables = ac, _roll_tables(like) if ac else []

    def __call__(self, noise: torch.Tensor, reference: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The noise after them; noise and reference (B, C, h, w), drawn (ROUNDS, ROLLS, LEVELS) of `draws`."""
        wanted = _statistics(reference) if self.kl else None
        pairs = [each.flatten(0, 1).unbind() for each in _operators(drawn, self.tables)] if self.ac else ((), ())
        rolls, each_round = list(zip(*pairs, strict=True)), drawn.shape[1]
        for i in range(drawn.shape[0]):
            if wanted is not None:
                step = _patch_gradient(noise, *wanted).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
                noise = _stepped(noise, step, self.kl)
            for left, right in rolls[i * each_round : (i + 1) * each_round]:
                noise = _stepped(noise, _roll_gradient(noise, left, right), self.ac / each_round)
        return noise


def patch_gradient(noise: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed |KL| between the patches of two noises with respect to the first."""
    if min(noise.shape[2:]) < PATCH:
        return torch.zeros_like(noise)
    return _patch_gradient(noise, *_statistics(reference))


def _statistics(reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse floored variance of every patch of the reference."""
    variance, mean = torch.var_mean(_patches(reference), 2, keepdim=True)
    return mean, variance.clamp_min(VARIANCE_FLOOR).reciprocal()


def _patch_gradient(noise: torch.Tensor, mean: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    # A divergence of normals is never negative: the published absolute value changes nothing.
    patches, n = _patches(noise), PATCH * PATCH
    own_variance, own_mean = torch.var_mean(patches, 2, keepdim=True)
    by_mean = (own_mean - mean) * precision * (2 / n)
    by_variance = (precision - own_variance.reciprocal()) * (2 / (n - 1))
    by_variance = torch.where(own_variance > VARIANCE_FLOOR, by_variance, 0.0)
    joined = F.pixel_shuffle(torch.addcmul(by_mean, by_variance, patches - own_mean).flatten(1, 2), PATCH)
    h, w = (a - b for a, b in zip(noise.shape[2:], joined.shape[2:], strict=True))
    return F.pad(joined, (0, w, 0, h)) if h or w else joined


def _patches(x: torch.Tensor) -> torch.Tensor:
    """(B, C, 16, h / 4, w / 4); rows and columns beyond the last whole patch are left out."""
    h, w = (size // PATCH * PATCH for size in x.shape[2:])
    return F.pixel_unshuffle(x[..., :h, :w], PATCH).unflatten(1, (-1, PATCH * PATCH))


def roll_gradient(noise: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed squared autocorrelations of every channel's pyramid; drawn (LEVELS,)."""
    return _roll_gradient(noise, *_operators(drawn, _roll_tables(noise)))


def _roll_tables(like: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Of every level of the pyramid, for every shift from 1 on: what rolls rows, and what rolls columns.

    A level is D e D', D halving what is above it. With S = roll there + roll back, its autocorrelation along the rows
    of n elements is <e, M> / 2 n with M = D' S D e D' D, and the gradient of the square of that is <e, M> M / n^2:
    two matrix products a level and direction, where rolling and halving planes this small takes dozens of calls.
    """
    tables, sizes = [], list(like.shape[2:])
    halving = [torch.eye(size, dtype=like.dtype, device=like.device) for size in sizes]
    for _ in range(LEVELS):
        still = [h.mT @ h / size for h, size in zip(halving, sizes, strict=True)]
        shifts = max(1, sizes[0] // 2 - 1)
        rolled = [h.mT @ _rolls(shifts, h) @ h / size for h, size in zip(halving, sizes, strict=True)]
        tables.append(
            (
                torch.stack([rolled[0], still[0].expand_as(rolled[0])], 1),
                torch.stack([still[1].expand_as(rolled[1]), rolled[1]], 1),
            )
        )
        if min(sizes) <= COARSEST:
            break
        sizes = [size // 2 for size in sizes]
        halving = [h[: 2 * size].unflatten(0, (size, 2)).mean(1) for h, size in zip(halving, sizes, strict=True)]
    return tables


def _rolls(shifts: int, like: torch.Tensor) -> torch.Tensor:
    """The matrices that roll by 1 .. shifts there, plus those that roll back, (shifts, size, size)."""
    size = len(like)
    at = torch.arange(size, device=like.device)
    shift = torch.arange(1, shifts + 1, device=like.device).view(-1, 1, 1)
    turn = at[:, None] - at
    return sum(((turn - way * shift) % size == 0).to(like.dtype) for way in (1, -1))


def _operators(drawn: torch.Tensor, tables: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """L (..., K, h, h) and R (..., K, w, w): the gradient at e is the sum over k of <e, L e R> L e R; K is two a level.

    The shifts, from drawn (..., LEVELS), are numbers on the device, so nothing here waits for them.
    """
    left, right = [], []
    for level, (rows, columns) in enumerate(tables):
        shift = (drawn[..., level] * len(rows)).long()
        left.append(rows[shift])
        right.append(columns[shift])
    return torch.cat(left, -3), torch.cat(right, -3)


def _roll_gradient(noise: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    e = noise.unsqueeze(2)
    moved = left @ e @ right
    return ((moved * e).sum((3, 4), keepdim=True) * moved).sum(2)


def _stepped(noise: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
    """noise - rate gradient where that is finite and no longer than the noise; the other images as they are."""
    length, limit = (torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) for x in (gradient, noise))
    return torch.where(rate * length <= limit, noise.sub(gradient, alpha=rate), noise)
