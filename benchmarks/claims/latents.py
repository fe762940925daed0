"""Are the latents noise? Correlation, normality, plain areas and geometry, by model and method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.claims.shards import Shards
from invfast import metrics
from invfast.analysis import PatchCorrelation, diagonal_kl, gaussian, geometry, normality, plain_areas, spectrum

FRESH = 977
"""Seed of the noise beside: fresh, of the same number."""
BACK = 64
"""Images a method is brought back from, by DDIM or Euler."""


def rows(shards: Shards) -> Iterator[dict[str, Any]]:
    """A row a method, after fresh noise and the noise that the images were drawn from."""
    subject = shards.subject
    every = range(subject.shards)
    drawn = shards.several(every)
    noise, images, plain = drawn.latents, drawn.init_latents, subject.plain(drawn.init_latents)
    for name, latents in (("fresh noise", gaussian(noise.shape, FRESH)), ("the noise", noise)):
        yield {"method": name, **figures(latents, noise, images, plain)}
    for name, method in subject.methods().items():
        found = shards.several(every, method)
        spent = sum(found.stats.evaluations) / len(found) / found.schedule.num_steps
        back = shards.recorded(found.latents[: min(BACK, subject.each)]).latents
        psnr = float(metrics.latent_psnr(back, images[: len(back)]).median())
        row = figures(found.latents, noise, images, plain)
        yield {"method": name, "evaluations": spent, "latent_psnr": psnr, **row}


def figures(latents: torch.Tensor, noise: torch.Tensor, images: torch.Tensor, plain: torch.Tensor) -> dict[str, Any]:
    """All figures of one set of latents."""
    sums = PatchCorrelation()
    for part in latents.split(256):
        sums.add(part)
    correlated, values, triangle = sums.result(), normality(latents), geometry(images, noise, latents)
    return {
        "n": len(latents),
        "top": correlated.top,
        "strongest": correlated.strongest,
        "found": correlated.found,
        "std": values.std,
        "kurtosis": values.kurtosis,
        "shapiro": values.shapiro_rejected,
        "kl": diagonal_kl(latents, noise),
        "low": spectrum(latents).low,
        **plain_areas(latents, plain, noise).as_dict(),
        "to_noise": triangle.noise_latent,
        "to_image": triangle.image_latent,
        "image_noise": triangle.image_noise,
        "angle": triangle.at_latent,
    }
