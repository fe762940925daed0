"""Plain areas: where an image has one colour, inverted latents lose the spread that noise has.

A pixel is plain where the mean of |difference to the pixel below| and |difference to the one at its right| is below
.025 in all channels (There and Back Again, arXiv 2410.23530, section 3). Inside and outside are compared: the error,
the standard deviation and the variance in 3 x 3 windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch

from invfast.ambient import neutral
from invfast.analysis.base import Result, TooSmallError, alike, checked

PLAIN = 0.025


@dataclass(frozen=True, repr=False)
class PlainAreas(Result):
    """Figures of one set of latents; NaN where there is no such area, and for errors without the true noise.

    Args:
        share: of the latents' cells that are plain.
        std_inside: standard deviation of all values in plain areas; 1 for noise.
        std_outside: elsewhere.
        variance_inside: mean over 3 x 3 windows around cells of plain areas, unbiased; 1 for noise.
        variance_outside: elsewhere.
        error_inside: mean |latents - noise| in plain areas.
        error_outside: elsewhere.
    """

    share: float
    std_inside: float
    std_outside: float
    variance_inside: float
    variance_outside: float
    error_inside: float
    error_outside: float


@neutral()
def plain_mask(pictures: torch.Tensor, threshold: float = PLAIN) -> torch.Tensor:
    """Which pixels are plain.

    The last row and column have no next one and are given the difference before.

    Args:
        pictures: (n, C, H, W) images or latents x_0, at least 2 pixels a side, finite floats on any device.
        threshold: in the pictures' own unit; the paper's is for values of about -1 to 1.

    Returns:
        (n, H, W) bool on the CPU.

    Raises:
        TypeError, ValueError: pictures that cannot be used, or a threshold that is no positive number.
    """
    x = checked("pictures", pictures).double()
    if not isinstance(threshold, Real) or not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be a positive number, got {threshold!r}")
    if min(x.shape[2:]) < 2:
        raise TooSmallError(f"plain areas need pictures of at least 2 pixels a side, got {tuple(x.shape)}")
    down, right = x.diff(dim=2).abs(), x.diff(dim=3).abs()
    down = torch.cat([down, down[:, :, -1:]], 2)
    right = torch.cat([right, right[..., -1:]], 3)
    return ((down + right) / 2 < threshold).all(1)


@neutral()
def plain_areas(latents: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor | None = None) -> PlainAreas:
    """Latents inside and outside the plain areas of their images.

    Args:
        latents: (n, C, h, w), at least 3 cells a side, finite floats on any device. For the error of predicted noises
            these, with the noise that was right.
        mask: (n, H, W) bool of the images, `plain_mask`. A multiple of the latents' sides: then a cell is plain where
            all its pixels are.
        noise: (n, C, h, w) the true noise, where it is known.

    Raises:
        TypeError, ValueError: tensors that cannot be used or do not fit each other.
    """
    x = checked("latents", latents).double()
    if min(x.shape[2:]) < 3:
        raise TooSmallError(f"local variance needs latents of at least 3 cells a side, got {tuple(x.shape)}")
    inside = _in_cells(mask, x)
    windows = x.unfold(2, 3, 1).unfold(3, 3, 1).var((-2, -1))
    error = None if noise is None else (x - alike("noise", noise, "latents", x).double()).abs()
    middle = inside[:, 1:-1, 1:-1]
    return PlainAreas(
        share=float(inside.double().mean()),
        std_inside=_std(x, inside),
        std_outside=_std(x, ~inside),
        variance_inside=_mean(windows, middle),
        variance_outside=_mean(windows, ~middle),
        error_inside=_mean(error, inside),
        error_outside=_mean(error, ~inside),
    )


def _in_cells(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(n, h, w): which cells of the latents are plain."""
    n, _, h, w = x.shape
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor (n, H, W), got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.ndim != 3 or len(mask) != n or mask.shape[1] % h or mask.shape[2] % w or mask.numel() == 0:
        raise ValueError(f"mask must be ({n}, H, W) with multiples of {h} and {w}, got {tuple(mask.shape)}")
    return mask.cpu().reshape(n, h, mask.shape[1] // h, w, mask.shape[2] // w).all(4).all(2)


def _at(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return values.transpose(0, 1)[:, where]


def _std(values: torch.Tensor, where: torch.Tensor) -> float:
    return float(_at(values, where).std(correction=0)) if bool(where.any()) else math.nan


def _mean(values: torch.Tensor | None, where: torch.Tensor) -> float:
    return math.nan if values is None or not bool(where.any()) else float(_at(values, where).mean())
