"""Interpolation: what is drawn from points between two noises, between two inversions, and from noise to inversion.

FID needs weights that no package brings. In its place: the Frechet distance of 4 x 4 means of the pictures (48 numbers
an image) to those drawn from noise, the share of plain pixels, and the mean step between neighbouring pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import linalg

from benchmarks.claims.shards import Shards
from benchmarks.claims.subjects import AUTO, started
from invfast.analysis import plain_mask
from invfast.interpolation import slerp

HALF = 1 / 2
"""Farthest from both ends."""
SELF = (0.0, HALF, 1.0)
WAYS = ("ddim", started(2), AUTO)
MOST = 4
"""Shards taken."""
DRAWS = 200


def rows(shards: Shards) -> Iterator[dict[str, Any]]:
    """A row half way between neighbours, and one a share of the way from the noise to its inversion."""
    subject = shards.subject
    chosen = range(min(MOST, subject.shards))
    drawn = shards.several(chosen)
    known = subject.pictures(drawn.init_latents)
    yield {"what": "drawn", "method": "the noise", **figures(known, known)}
    beside: dict[str, torch.Tensor] = {}
    for name, method in {"the noise": None, **subject.methods()}.items():
        if method is not None and name not in WAYS:
            continue
        ends = [shards.several((j,), method).latents for j in chosen]
        made = torch.cat([sampled(shards, each, partners(each, subject.prompted), HALF) for each in ends])
        pictures = subject.pictures(made)
        # Of the same pairs of images, so what they share does not blur by how much methods differ.
        apart = {other: error(means(pictures), means(known), means(each)) for other, each in beside.items()}
        beside[name] = pictures
        yield {"what": "between", "method": name, "share": HALF, **figures(pictures, known), "apart": apart}
        if method is not None:
            yield from self_interpolated(shards, name, ends[0], known)


def self_interpolated(
    shards: Shards, name: str, latents: torch.Tensor, known: torch.Tensor
) -> Iterator[dict[str, Any]]:
    """Rows from a shard's noise to what was found of it."""
    drawn = shards.drawn(0)
    for share in SELF:
        made = sampled(shards, drawn.latents, latents, share)
        off = float((made - drawn.init_latents).square().mean().sqrt())
        row = {"what": "self", "method": name, "share": share, "off": off}
        yield {**row, **figures(shards.subject.pictures(made), known)}


def partners(x: torch.Tensor, prompted: bool) -> torch.Tensor:
    """Each one's other end: the next image, of the same prompt where there are any."""
    return x.roll(16 if prompted else 1, 0)


def sampled(shards: Shards, a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """(n, C, h, w) images drawn from points on the arcs."""
    arcs = torch.cat([slerp(one, other, (share,)) for one, other in zip(a, b, strict=True)])
    return shards.recorded(arcs).latents


def figures(pictures: torch.Tensor, known: torch.Tensor) -> dict[str, Any]:
    """What is measured of a set of pictures."""
    x = pictures.clamp(-1, 1)
    own, beside = means(x), means(known.clamp(-1, 1))
    return {
        "n": len(x),
        "frechet": frechet(own, beside),
        "frechet_error": error(own, beside),
        "plain": float(plain_mask(x).double().mean()),
        "step": float((x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()) / 2),
    }


def means(x: torch.Tensor) -> np.ndarray:
    """(n, 48) the 4 x 4 means of each colour."""
    return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1).double().numpy()


def error(a: np.ndarray, b: np.ndarray, other: np.ndarray | None = None) -> float:
    """Standard error of the distance of a to b, or of how much larger it is than the other's: DRAWS bootstrap samples.

    A sample takes the same images of both.
    """
    random = np.random.default_rng(DRAWS)
    found = []
    for _ in range(DRAWS):
        drawn = random.integers(0, len(a), len(a))
        found.append(frechet(a[drawn], b) - (0.0 if other is None else frechet(other[drawn], b)))
    return float(np.std(found, ddof=1))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) of Gaussians fitted to (n, d) each (Dowson and Landau, 1982)."""
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.linalg.eigvalsh(linalg.sqrtm(one).real @ other @ linalg.sqrtm(one).real)
    apart = float(np.square(a.mean(0) - b.mean(0)).sum())
    total = apart + np.trace(one) + np.trace(other) - 2 * np.sqrt(np.clip(values, 0, None)).sum()
    return max(0.0, float(total)) if math.isfinite(total) else math.nan
