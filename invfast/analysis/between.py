"""Self-interpolation: from the true noise to the latent that was found, along the great circle between them.

Were both the same noise, every figure and every image would be the same on the way. Where the figure changes, and how
early, says how far an inversion is from noise (There and Back Again, arXiv 2410.23530, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch

from invfast.ambient import neutral
from invfast.analysis.base import Result, alike, checked
from invfast.interpolation import slerp


@dataclass(frozen=True, repr=False)
class SelfInterpolation(Result):
    """A figure along the way.

    Args:
        shares: of the way, 0 at the true noise and 1 at the latent.
        values: what the figure gave there.
    """

    shares: tuple[float, ...]
    values: tuple[float, ...]


@neutral()
def self_interpolation(
    noise: torch.Tensor, latents: torch.Tensor, figure: Callable[[torch.Tensor], float], *, points: int = 7
) -> SelfInterpolation:
    """A figure of latents between noise and inversion.

    Args:
        noise: (n, C, h, w) the true noise, finite floats.
        latents: (n, C, h, w) what inversion found of it.
        figure: (n, C, h, w), on the device and in the dtype of `latents`, -> a number: of the latents themselves, or
            of what a pipeline makes of them.
        points: how many, both ends included; seven give the paper's sixths.

    Raises:
        TypeError, ValueError: tensors that cannot be used or do not fit each other, or fewer than 2 points.
    """
    if not isinstance(points, Integral) or isinstance(points, bool) or points < 2:
        raise ValueError(f"points must be an integer of at least 2, got {points!r}")
    x = checked("latents", latents)
    e = alike("noise", noise, "latents", x)
    shares = tuple(k / (points - 1) for k in range(points))
    ways = torch.stack([slerp(a.double(), b.double(), shares) for a, b in zip(e, x, strict=True)], 1)
    values = [float(figure(way.to(latents))) for way in ways]
    return SelfInterpolation(shares, tuple(values))
