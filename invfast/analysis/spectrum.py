"""Whether latents are white: power by frequency, and correlation with their own shifted selves.

The power |FFT(x)|^2 / (h w) of unit white noise is 1 at every frequency. Traces of an image show as more of it at low
frequencies, and as neighbours that resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from invfast.ambient import neutral
from invfast.analysis.base import Result, checked

LOW = 1 / 8
"""Cycles a pixel up to which frequencies count as low."""
LAGS = 8
"""Pixels up to which latents are compared with themselves."""
AT_ONCE = 64
"""Latents transformed at once."""


@dataclass(frozen=True, repr=False)
class Spectrum(Result):
    """Figures of one set of latents, means over latents and channels.

    Args:
        n: latents.
        frequency: of rings one step of the shorter side wide, in cycles a pixel, the latent's mean first.
        power: in each ring; 1 for unit noise.
        low: power at up to 1/8 cycles a pixel, over the power of all; 1 for noise of any scale.
        horizontal: correlation with the latent moved by 1, 2, ... 8 pixels; 0 for noise. Each channel of a latent has
            its own mean taken off.
        vertical: likewise.
        neighbours: mean over latents of |correlation| of direct neighbours, both ways; small for noise, never 0.
    """

    n: int
    frequency: tuple[float, ...]
    power: tuple[float, ...]
    low: float
    horizontal: tuple[float, ...]
    vertical: tuple[float, ...]
    neighbours: float


@neutral()
def spectrum(latents: torch.Tensor) -> Spectrum:
    """Power by frequency, and autocorrelation.

    Args:
        latents: (n, C, h, w), finite floats on any device, of any sides.

    Raises:
        TypeError, ValueError: latents that cannot be used.
    """
    x = checked("latents", latents)
    total, across, down = 0.0, [], []
    for part in x.split(AT_ONCE):
        values = part.double()
        total = total + torch.fft.fft2(values, norm="ortho").abs().square().mean(1).sum(0)
        across.append(_shifted(values))
        down.append(_shifted(values.transpose(2, 3)))
    power = total / len(x)
    radius, ring = _rings(*x.shape[2:])
    count = torch.bincount(ring).double()
    kept = count > 0
    horizontal, vertical = torch.cat(across), torch.cat(down)
    first = torch.cat([horizontal[..., :1], vertical[..., :1]], -1).flatten(1)
    return Spectrum(
        n=len(x),
        frequency=_each(torch.bincount(ring, radius)[kept] / count[kept]),
        power=_each(torch.bincount(ring, power.flatten())[kept] / count[kept]),
        low=float(power.flatten()[radius <= LOW].mean() / power.mean()),
        horizontal=_each(horizontal.nanmean((0, 1))),
        vertical=_each(vertical.nanmean((0, 1))),
        neighbours=float(first.nanmean(1).abs().nanmean()),
    )


def _rings(h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every frequency its distance from 0, in cycles a pixel, and the number of its ring."""
    fy, fx = (torch.fft.fftfreq(side, dtype=torch.float64, device="cpu") for side in (h, w))
    radius = torch.hypot(fy.unsqueeze(1), fx).flatten()
    return radius, (radius * min(h, w)).round().long()


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """(n, C, lags) correlation of x with itself moved along its last side; NaN for a channel of one value."""
    x = x - x.mean((2, 3), keepdim=True)
    lags = range(1, min(LAGS, x.shape[3] - 1) + 1)
    if not lags:
        return x.new_zeros((*x.shape[:2], 0))
    moved = [(x[..., lag:] * x[..., :-lag]).mean((2, 3)) for lag in lags]
    return torch.stack(moved, -1) / x.square().mean((2, 3)).unsqueeze(-1)


def _each(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
