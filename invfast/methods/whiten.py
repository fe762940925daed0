"""Gradient steps that make a predicted noise look like noise: ReNoise's regularisation, after pix2pix-zero.

    e <- e - lambda_kl clip(d/de sum |log(v1/v0) + (v0 + (m0 - m1)^2) / v1 - 1|, +-100)
    e <- e - lambda_ac / 5  d/de sum (mean e roll(e, r, H))^2 + (mean e roll(e, r, W))^2         five times

and that four times over (Garibi et al., ECCV 2024, section 3.3 and its code). m and v are mean and variance of every
patch of 4 x 4 in every channel, 0 those of e and 1 those of a reference; the second sum runs over channels and over a
pyramid of halved planes down to 8. The gradients are written out: nothing here needs autograd.

Plain areas have patches without variance, 1/v explodes there, and such images came out black or NaN. So variances have
a floor, below which they are not moved; and a move that is not finite or longer than the noise itself, as fixed rates
give it where the noise is large, is left out, image by image: the first line's, or the second's five steps together.
Shifts are drawn from 1 on: the published 0 compares a plane with itself and shrinks it. One serves all channels, where
the published code draws one for each; `SHIFTS` has both.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

PATCH, COARSEST = 4, 8
GRADIENT_LIMIT = 100.0
VARIANCE_FLOOR = 1e-2
ROUNDS, ROLLS, LEVELS = 4, 5, 12
SHIFTS = ("shared", "channel")
"""Of the autocorrelation: one for all channels, from 1 on; or one a channel, from 0 on, as published."""


def draws(steps: int, calls: int, channels: int | None = None) -> torch.Tensor:
    """Where the shifts come from, (steps, calls, ROUNDS, ROLLS, LEVELS) in [0, 1), float64: one draw for all images.

    With `channels` one for each, (steps, calls, ROUNDS, ROLLS, channels, LEVELS).
    """
    generator = torch.Generator().manual_seed(0)
    each = () if channels is None else (channels,)
    return torch.rand(steps, calls, ROUNDS, ROLLS, *each, LEVELS, generator=generator, dtype=torch.float64)


class Whitener:
    """All gradient steps, for noises of one size; what does not depend on the noise is made once.

    Args:
        like: (B, C, h, w), float32 or float64: a noise, of which only height, width, dtype and device count.
        kl, ac: lambda_kl and lambda_ac; 0 leaves that gradient out.
        shifts: one of `SHIFTS`.
    """

    def __init__(self, like: torch.Tensor, kl: float, ac: float, shifts: str = "shared") -> None:
        self.by_channel = shifts == "channel"
        self.kl = kl if min(like.shape[2:]) >= PATCH else 0
        # A gradient is of second order in its operators: the rate of each of a round's steps goes into them.
        self.tables = _roll_tables(like, math.sqrt(ac / ROLLS), 0 if self.by_channel else 1) if ac else None

    def __call__(self, noise: torch.Tensor, reference: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The noise after them; noise and reference (B, C, h, w), drawn (ROUNDS, ROLLS, LEVELS) of `draws`, or that
        with a channel's before the last.
        """
        drawn = drawn if self.by_channel else drawn.unsqueeze(-2)
        wanted = _statistics(reference) if self.kl else None
        left, right = _operators(drawn, self.tables) if self.tables else (None, None)
        for i in range(drawn.shape[0]):
            if wanted is not None:
                gradient = _patch_gradient(noise, *wanted).clamp_(-GRADIENT_LIMIT, GRADIENT_LIMIT)
                noise = _moved(noise, noise.sub(gradient, alpha=self.kl))
            if left is not None:
                planes = noise.reshape(-1, *noise.shape[2:])
                for operators in zip(*_spread(left[i], right[i], len(planes)), strict=True):
                    planes = _roll_step(planes, *operators)
                noise = _moved(noise, planes.view(noise.shape))
        return noise


def patch_gradient(noise: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed |KL| between the patches of two noises with respect to the first."""
    if min(noise.shape[2:]) < PATCH:
        return torch.zeros_like(noise)
    return _patch_gradient(noise, *_statistics(reference))


def _statistics(reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse floored variance of every patch of the reference, (B, C, h / 4, w / 4)."""
    mean, _, variance = _moments(reference)
    return mean, variance.clamp_min(VARIANCE_FLOOR).reciprocal()


def _patch_gradient(noise: torch.Tensor, mean: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    # A divergence of normals is never negative: the published absolute value changes nothing.
    (own_mean, apart, own_variance), n = _moments(noise), PATCH * PATCH
    by_mean = (own_mean - mean) * precision * (2 / n)
    by_variance = (precision - own_variance.reciprocal()) * (2 / (n - 1))
    by_variance = torch.where(own_variance > VARIANCE_FLOOR, by_variance, 0.0)
    joined = torch.addcmul(_over_patches(by_mean), _over_patches(by_variance), apart).flatten(4, 5).flatten(2, 3)
    h, w = (a - b for a, b in zip(noise.shape[2:], joined.shape[2:], strict=True))
    return F.pad(joined, (0, w, 0, h)) if h or w else joined


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every patch the mean, each element's distance from it (B, C, h / 4, 4, w / 4, 4), and the variance.

    Rows and columns beyond the last whole patch are left out. Pooling is faster here than a variance over two axes.
    """
    mean = F.avg_pool2d(x, PATCH)
    h, w = mean.shape[2:]
    apart = x[..., : h * PATCH, : w * PATCH].unflatten(3, (w, PATCH)).unflatten(2, (h, PATCH)) - _over_patches(mean)
    variance = F.avg_pool2d(apart.square().flatten(4, 5).flatten(2, 3), PATCH, divisor_override=PATCH * PATCH - 1)
    return mean, apart, variance


def _over_patches(x: torch.Tensor) -> torch.Tensor:
    return x[..., :, None, :, None]


def roll_gradient(noise: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed squared autocorrelations of every channel's pyramid; drawn (LEVELS,)."""
    planes = noise.reshape(-1, *noise.shape[2:])
    left, right = _spread(*_operators(drawn[None, None], _roll_tables(noise, 1.0)), len(planes))
    return (planes - _roll_step(planes, left[0], right[0])).view(noise.shape)


Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _roll_tables(like: torch.Tensor, scale: float, first: int = 1) -> Tables:
    """Of every level of the pyramid, for every shift from `first` on and below half of the rows: what rolls rows, times
    `scale`, and what rolls columns.

    A level is D e D', D halving what is above it. With S = roll there + roll back, its autocorrelation along the rows
    of n elements is <e, M> / 2 n with M = D' S D e D' D, and the gradient of the square of that is <e, M> M / n^2:
    two matrix products a level and direction, where rolling and halving planes this small takes dozens of calls.

    Returns:
        Left (S, 2, h, h) and right (S, 2, w, w) of the S shifts of all levels, rows first, then columns; how many
        shifts each level has, (levels,); where they begin, (levels,).
    """
    left, right, counts, sizes = [], [], [], list(like.shape[2:])
    halving = [torch.eye(size, dtype=like.dtype, device=like.device) for size in sizes]
    for _ in range(LEVELS):
        still = [h.mT @ h / size for h, size in zip(halving, sizes, strict=True)]
        counts.append(max(1, sizes[0] // 2 - first))
        rolled = [h.mT @ _rolls(first, counts[-1], h) @ h / size for h, size in zip(halving, sizes, strict=True)]
        left.append(torch.stack([rolled[0], still[0].expand_as(rolled[0])], 1))
        right.append(torch.stack([still[1].expand_as(rolled[1]), rolled[1]], 1))
        if min(sizes) <= COARSEST:
            break
        sizes = [size // 2 for size in sizes]
        halving = [h[: 2 * size].unflatten(0, (size, 2)).mean(1) for h, size in zip(halving, sizes, strict=True)]
    count = torch.tensor(counts, device=like.device)
    return torch.cat(left) * scale, torch.cat(right), count, count.cumsum(0) - count


def _rolls(first: int, shifts: int, like: torch.Tensor) -> torch.Tensor:
    """The matrices that roll by `first` and so on there, plus those that roll back, (shifts, size, size)."""
    size = len(like)
    at = torch.arange(size, device=like.device)
    shift = torch.arange(first, first + shifts, device=like.device).view(-1, 1, 1)
    turn = at[:, None] - at
    return sum(((turn - way * shift) % size == 0).to(like.dtype) for way in (1, -1))


def _operators(drawn: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
    """L (..., K, h, h) and R (..., K, w, w): the gradient at e is the sum over k of <e, L e R> L e R; K is two a level.

    The shifts, from drawn (..., LEVELS), are numbers on the device, so nothing here waits for them.
    """
    left, right, counts, first = tables
    shift = (drawn[..., : len(counts)] * counts).long() + first
    return left[shift].flatten(-4, -3), right[shift].flatten(-4, -3)


def _spread(left: torch.Tensor, right: torch.Tensor, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Operators (ROLLS, 1 or C, K, ...) laid out for one batched product each over all planes, so that an image's bits
    are the same in any batch: (ROLLS, planes, K h, h) and (ROLLS, planes K, w, w)."""
    times = planes // left.shape[1]
    left = left.flatten(2, 3).unsqueeze(1).expand(-1, times, -1, -1, -1).flatten(1, 2)
    return left, right.unsqueeze(1).expand(-1, times, -1, -1, -1, -1).flatten(1, 3)


def _roll_step(planes: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Planes (n, h, w) less their gradient, by left (n, K h, h) and right (n K, w, w)."""
    n, h, w = planes.shape
    moved = torch.bmm(torch.bmm(left, planes).view(-1, h, w), right).view(n, -1, h * w)
    rows = planes.view(n, 1, h * w)
    return torch.baddbmm(rows, torch.bmm(rows, moved.mT), moved, alpha=-1).view(n, h, w)


def _moved(noise: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` where it is finite and no farther from the noise than the noise is long; the other images as they are."""
    apart, limit = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (new - noise, noise))
    return torch.where((apart <= limit).view(-1, 1, 1, 1), new, noise)
