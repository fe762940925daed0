"""All figures of one set of latents in one table, each with that of noise beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from invfast.ambient import neutral
from invfast.analysis.areas import plain_areas, plain_mask
from invfast.analysis.base import SEED, Beside, Result, TooSmallError, alike, beside, checked, gaussian, noise_beside
from invfast.analysis.correlation import correlation
from invfast.analysis.geometry import alignment, geometry
from invfast.analysis.normality import diagonal_kl, normality
from invfast.analysis.spectrum import spectrum

ENOUGH = 4096
"""Latents from which the paper reads correlations; the null of the largest |r| falls with their root."""

AS_NOISE = "as noise"
ROWS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "correlation": (
        ("top", "20 largest |r| of a patch", AS_NOISE),
        ("strongest", "largest |r| of all", AS_NOISE),
        ("found", "pairs beyond chance", "0"),
    ),
    "normality": (
        ("mean", "mean", "0"),
        ("std", "standard deviation", "1"),
        ("kurtosis", "kurtosis", "3"),
        ("shapiro_rejected", "rejected by Shapiro-Wilk", "0.05"),
        ("ks_rejected", "rejected by Kolmogorov-Smirnov", "0.05"),
        ("ks_distance", "Kolmogorov-Smirnov distance", AS_NOISE),
    ),
    "divergence": (("", "KL of diagonal Gaussians", AS_NOISE),),
    "spectrum": (
        ("low", "power at low frequencies", "1"),
        ("neighbours", "|correlation| of neighbours", AS_NOISE),
    ),
    "areas": (
        ("share", "share of plain areas", ""),
        ("std_inside", "standard deviation inside", "1"),
        ("std_outside", "standard deviation outside", "1"),
        ("variance_inside", "3 x 3 variance inside", "1"),
        ("variance_outside", "3 x 3 variance outside", "1"),
        ("error_inside", "mean error inside", "0"),
        ("error_outside", "mean error outside", "0"),
    ),
    "alignment": (
        ("length", "length over sqrt(C h w)", "1"),
        ("cosine", "cosine to the own image", "as true noise"),
    ),
    "geometry": (
        ("noise_latent", "distance to the noise", "0"),
        ("image_latent", "distance to the image", AS_NOISE),
        ("at_image", "angle at the image, degrees", "0"),
        ("at_latent", "angle at the latent, degrees", ""),
    ),
}
"""Of each subject its rows: field of the result, what it says, what it is for true noise."""


@dataclass(frozen=True, repr=False)
class Row(Result):
    """One figure.

    Args:
        subject: a key of `Report.found`.
        figure: what it is.
        latents: its value for the latents.
        noise: for Gaussian noise of their number.
        permuted: for the latents with what is asked for broken up, None where that says nothing.
        clean: what it is for latents that are noise, in words.
    """

    subject: str
    figure: str
    latents: float
    noise: float
    permuted: float | None
    clean: str


@dataclass(frozen=True, repr=False)
class Report(Result):
    """What `analyze` found.

    Args:
        n: latents.
        shape: (C, h, w) of each.
        rows: the figures.
        skipped: subjects that could not be had, and why.
        found: the results behind the rows, by subject; "divergence" is a number.
    """

    n: int
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    skipped: dict[str, str]
    found: dict[str, Beside[Any]] = field(repr=False, compare=False)


@neutral()
def analyze(
    latents: torch.Tensor,
    images: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    *,
    mask: torch.Tensor | None = None,
    seed: int = SEED,
) -> Report:
    """Every figure that these latents have.

    Args:
        latents: (n, C, h, w) what inversion found, finite floats on any device.
        images: (n, C, h, w) the latents x_0 that were inverted, for plain areas and alignment.
        noise: (n, C, h, w) the true noise, where it is known, for errors, the divergence and geometry.
        mask: (n, H, W) bool, which pixels are plain; by default `plain_mask(images)`, of latents few.
        seed: of the noise beside, the permutations and what is drawn from a latent.

    Returns:
        Report. What needs more latents than there are is among `skipped`.

    Raises:
        TypeError, ValueError: tensors that cannot be used or do not fit each other.
        ImportError: scipy is missing.
    """
    x = checked("latents", latents)
    own = None if images is None else alike("images", images, "latents", x)
    true = None if noise is None else alike("noise", noise, "latents", x)
    found, skipped = {}, {}
    for subject, figure in _subjects(x, own, true, mask, seed):
        try:
            found[subject] = figure()
        except TooSmallError as error:
            skipped[subject] = str(error)
    rows = tuple(row for subject, result in found.items() for row in _rows(subject, result))
    return Report(len(x), tuple(x.shape[1:]), rows, skipped, found)


def _subjects(
    x: torch.Tensor, images: torch.Tensor | None, noise: torch.Tensor | None, mask: torch.Tensor | None, seed: int
) -> Iterator[tuple[str, Callable[[], Beside[Any]]]]:
    """What can be asked of them, by subject."""
    yield "correlation", lambda: beside(correlation, x, seed=seed, permute=True)
    yield "normality", lambda: beside(lambda z: normality(z, seed=seed), x, seed=seed)
    reference = gaussian(x.shape, seed) if noise is None else noise
    yield "divergence", lambda: beside(lambda z: diagonal_kl(z, reference), x, seed=seed)
    yield "spectrum", lambda: beside(spectrum, x, seed=seed)
    if images is not None or mask is not None:
        yield "areas", lambda: _areas(x, plain_mask(images) if mask is None else mask, noise, seed)
    if images is not None:
        yield "alignment", lambda: _alignment(x, noise_beside(x, seed), images)
    if images is not None and noise is not None:
        yield "geometry", lambda: beside(lambda z: geometry(images, noise, z), x, seed=seed)


def _areas(x: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor | None, seed: int) -> Beside[Any]:
    return beside(lambda z: plain_areas(z, mask, noise), x, seed=seed)


def _alignment(x: torch.Tensor, noise: torch.Tensor, images: torch.Tensor) -> Beside[Any]:
    """Its permutation: latents beside the images of others."""
    own = alignment(x, images)
    return Beside(own, alignment(noise, images), replace(own, cosine=own.cosine_others))


def _rows(subject: str, result: Beside[Any]) -> Iterator[Row]:
    for name, figure, clean in ROWS[subject]:
        values = [
            getattr(each, name) if name and each is not None else each
            for each in (result.latents, result.noise, result.permuted)
        ]
        if values[0] == values[0]:  # NaN is a figure that does not apply, errors without the true noise for instance
            yield Row(subject, figure, *values, clean)
