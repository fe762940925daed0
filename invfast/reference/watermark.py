"""Watermarks long-hand: transforms as sums, truncated sampling by the inverse distribution, votes one by one."""

from __future__ import annotations

import cmath
import math

import torch


def coefficients(x: torch.Tensor) -> dict[tuple[int, int], complex]:
    """The unitary Fourier transform of (h, w), by frequency (v, u), both from minus a half of the side on."""
    h, w = x.shape
    found = {}
    for v in range(-(h // 2), -(h // 2) + h):
        for u in range(-(w // 2), -(w // 2) + w):
            total = 0j
            for i in range(h):
                for j in range(w):
                    total += float(x[i, j]) * cmath.exp(-2j * math.pi * (v * i / h + u * j / w))
            found[v, u] = total / math.sqrt(h * w)
    return found


def from_coefficients(found: dict[tuple[int, int], complex], h: int, w: int) -> torch.Tensor:
    """(h, w) of their coefficients; its imaginary part is dropped."""
    x = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            terms = (c * cmath.exp(2j * math.pi * (v * i / h + u * j / w)) for (v, u), c in found.items())
            x[i, j] = sum(terms).real / math.sqrt(h * w)
    return x


def ring_of(v: int, u: int, h: int, w: int) -> int:
    """Number of the ring, (r - 1, r], that a frequency is on, in the shorter side's; 0 lies on the first."""
    return max(1, math.ceil(min(h, w) * math.sqrt((v / h) ** 2 + (u / w) ** 2) - 1e-9))


def statistic(x: torch.Tensor, key: dict[tuple[int, int], complex]) -> tuple[float, float, int, float]:
    """(mean |y - k|, eta, degrees of freedom, lambda) of a channel (h, w) and the coefficients a key has, as Tree-Ring
    has them.
    """
    y = coefficients(x)
    s2 = sum(abs(y[at]) ** 2 for at in key) / len(key)
    away = [abs(y[at] - k) for at, k in key.items()]
    power = sum(abs(k) ** 2 for k in key.values())
    return sum(away) / len(away), sum(d**2 for d in away) / s2, len(key), power / s2


def truncated(bit: int, u: float) -> float:
    """A normal number from the half of the distribution that a bit names, u uniform (arXiv 2404.04956, equation 6)."""
    return float(torch.special.ndtri(torch.tensor((bit + u) / 2, dtype=torch.float64)))


def voted(x: torch.Tensor, stream: torch.Tensor, copies: tuple[int, int, int]) -> list[int]:
    """The message in the signs of (C, h, w): xor with the stream's bits, then each bit's majority; no ties."""
    block = [side // each for side, each in zip(x.shape, copies, strict=True)]
    votes = torch.zeros(block)
    for c in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                bit = int(x[c, i, j] > 0) ^ int(stream[c, i, j])
                votes[c % block[0], i % block[1], j % block[2]] += 1 if bit else -1
    return [int(each > 0) for each in votes.flatten()]
