"""Rings of the Fourier transform: which coefficients they are, and the test of those that were found.

With the unitary transform every coefficient of standard normal noise has E |y|^2 = 1. Those of real latents come in
conjugate pairs, so a set of m coefficients that has both of each pair holds m real degrees of freedom. Tree-Ring (arXiv
2305.20030, section 3.3) tests

    eta = sum |y - k|^2 / s^2,   s^2 = sum |y|^2 / m,

as non-central chi-squared with m degrees and lambda = sum |k|^2 / s^2 (`paper`). But s^2 is of the same coefficients:

    eta = m + lambda - 2 c sqrt(m lambda),   c = Re <y, k> / (|y| |k|),

so that all it says of the key is c, whose own distribution is known: c sqrt((m - 1) / (1 - c^2)) is Student's t with
m - 1 degrees for every y that has no preferred direction, and for a Gaussian k whatever y is. That is `tested`. A key
of zeros has no direction; there it is the power within against that without, Fisher's F.

A key that is constant on rings has as many random values as rings, and latents of a picture are coloured by distance:
with all m coefficients a tenth of the keys are found in a plain picture at p <= .01. Of the rings' means, R numbers, c
is that of a Gaussian k again, and t with R - 1 degrees holds whatever y is (`of_rings`).
"""

from __future__ import annotations

import math

import torch

from invfast.watermark.base import integer, scipy_stats


def radii(h: int, w: int) -> torch.Tensor:
    """(h, w) the distance of each coefficient from frequency 0, in units of the shorter side's frequencies.

    A turned image's coefficients turn at one distance. Frequency 0 is at (0, 0), as torch.fft has it.
    """
    v, u = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (h, w))
    return torch.hypot(v[:, None], u[None, :]) * min(h, w)


def rings(h: int, w: int, radius: int, inner: int = 0) -> torch.Tensor:
    """(h, w) the ring a coefficient is on, 0 the innermost, (inner, inner + 1]; -1 outside. Frequency 0 is on ring 0
    where inner is 0.
    """
    at = radii(h, w)
    # Distances are roots of sums of squares, rounded: 5 may be a little more.
    number = (at - 1e-9).ceil().clamp(min=1 if inner == 0 else 0).long() - 1 - inner
    return number.masked_fill((number < 0) | (number >= radius - inner), -1)


def scaled(share: float, shape: tuple[int, ...], least: int) -> int:
    """A share of the shorter side, but at least so much where that is below its half."""
    side = min(shape[1:])
    return max(math.ceil(share * side), min(least, (side - 1) // 2))


def check_radius(shape: tuple[int, ...], radius: int, inner: int = 0) -> None:
    """Raises ValueError where the rings do not fit: then a coefficient's conjugate would be outside."""
    side = min(shape[1:])
    integer("radius", radius, 1)
    integer("inner", inner, 0)
    if not inner < radius < side / 2:
        raise ValueError(
            f"radius must lie above {inner}, the inner radius, and below {side / 2:g}, half the shorter side of "
            f"latents {shape}, got {radius}"
        )


def check_channel(shape: tuple[int, ...], channel: int) -> None:
    """Raises ValueError where latents have no such channel."""
    if integer("channel", channel, 0) >= shape[0]:
        raise ValueError(f"latents {shape} have channels 0 to {shape[0] - 1}, got {channel}")


def transform(latents: torch.Tensor) -> torch.Tensor:
    """The unitary transform over the last two sides, complex128."""
    return torch.fft.fft2(latents.double(), norm="ortho")


def back(coefficients: torch.Tensor) -> torch.Tensor:
    """Real latents of coefficients whose pairs are conjugate."""
    return torch.fft.ifft2(coefficients, norm="ortho").real


def tested(found: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean distance and p-value of one channel.

    Args:
        found: (n, h, w) coefficients.
        key: (h, w) the key's.
        mask: (h, w) where it has some.

    Returns:
        ((n,) mean |y - k|, (n,) how often latents without the key are as near), float64. Where nothing can be said,
        of latents without power, p is 1.
    """
    y, k, stats = found[:, mask], key[mask], scipy_stats()
    m, distance = len(k), (y - k).abs().mean(1)
    if not k.any():
        outside = found[:, ~mask]
        within = y.abs().square().mean(1) / outside.abs().square().mean(1)
        p = stats.f.cdf(within.numpy(), m, outside.shape[1])
    else:
        c = (y * k.conj()).real.sum(1) / (y.abs().square().sum(1) * k.abs().square().sum()).sqrt()
        p = stats.t.sf((c * ((m - 1) / (1 - c * c).clamp(min=0)).sqrt()).numpy(), m - 1)
    return distance, torch.as_tensor(p, dtype=torch.float64).nan_to_num(1.0).clamp(0, 1)


def of_rings(found: torch.Tensor, key: torch.Tensor, ring: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`tested` of a key with one real value a ring.

    Args:
        found: (n, h, w) coefficients.
        key: (R,) the key's values.
        ring: (h, w) which of them a coefficient has, -1 none.
    """
    mask = ring >= 0
    number, count = ring[mask], torch.bincount(ring[mask], minlength=len(key)).double()
    y = found[:, mask]
    means = torch.zeros(len(y), len(key), dtype=torch.float64).index_add_(1, number, y.real) / count
    # What a ring's mean says of its value beside noise as large as the key: little on the inner ones.
    means = means * count / (count + 1)
    c = (means * key).sum(1) / (means.norm(dim=1) * key.norm())
    degrees = len(key) - 1
    p = scipy_stats().t.sf((c * (degrees / (1 - c * c).clamp(min=0)).sqrt()).numpy(), degrees)
    return (y - key[number]).abs().mean(1), torch.as_tensor(p, dtype=torch.float64).nan_to_num(1.0).clamp(0, 1)


def paper(found: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(n,) p-values of one channel as Tree-Ring has them; see `tested`."""
    y, k = found[:, mask], key[mask]
    s2 = y.abs().square().mean(1)
    eta, power = (y - k).abs().square().sum(1) / s2, k.abs().square().sum() / s2
    return torch.as_tensor(scipy_stats().ncx2.cdf(eta.numpy(), len(k), power.numpy()), dtype=torch.float64)
