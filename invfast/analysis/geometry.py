"""Where an inversion lies: the triangle of an image, the noise it came from and the latent that was found.

An exact inversion is the noise itself. DDIM's lies between noise and image: it is shorter than noise and still holds
some of the picture (There and Back Again, arXiv 2410.23530, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from invfast.ambient import neutral
from invfast.analysis.base import Result, alike, checked


@dataclass(frozen=True, repr=False)
class Geometry(Result):
    """Means over triangles; distances are divided by sqrt(C h w), so that two sets of noise are sqrt(2) apart.

    Args:
        n: triangles.
        at_image: angle at the image in degrees; NaN where two corners coincide.
        at_noise: at the noise.
        at_latent: at the latent.
        image_noise: distance between image and noise.
        image_latent: between image and latent.
        noise_latent: between noise and latent.
        nearer_noise: share of the sampling path's nodes, the noise itself left out, that lie nearer to the noise than
            to the latent; NaN without a path.
    """

    n: int
    at_image: float
    at_noise: float
    at_latent: float
    image_noise: float
    image_latent: float
    noise_latent: float
    nearer_noise: float


@dataclass(frozen=True, repr=False)
class Alignment(Result):
    """What can be said without the true noise.

    Args:
        n: latents.
        length: their lengths over sqrt(C h w); 1 for noise.
        cosine: of the angles between latents and their own images; 0 for noise that has nothing to do with them. The
            noise that an image was sampled from has something of it too.
        cosine_others: between latents and the images of others, each latent's average over `others` of them: what all
            images share. NaN for a single latent.
    """

    n: int
    length: float
    cosine: float
    cosine_others: float


@neutral()
def geometry(
    images: torch.Tensor, noise: torch.Tensor, latents: torch.Tensor, trajectory: torch.Tensor | None = None
) -> Geometry:
    """Angles and distances between images x_0, the noise they were sampled from and the latents found.

    Args:
        images: (n, C, h, w), finite floats on any device.
        noise: likewise.
        latents: likewise.
        trajectory: (m, n, C, h, w) the path that sampling took, x_0 first and the noise last (`Recording.trajectory`).

    Raises:
        TypeError, ValueError: tensors that cannot be used or do not fit each other.
    """
    x = checked("latents", latents).flatten(1).double()
    i, e = (alike(*each, "latents", latents).flatten(1).double() for each in (("images", images), ("noise", noise)))
    root = math.sqrt(x.shape[1])
    return Geometry(
        n=len(x),
        at_image=_angle(e - i, x - i),
        at_noise=_angle(i - e, x - e),
        at_latent=_angle(i - x, e - x),
        image_noise=_length(i - e) / root,
        image_latent=_length(i - x) / root,
        noise_latent=_length(e - x) / root,
        nearer_noise=math.nan if trajectory is None else _nearer(trajectory, e, x, latents),
    )


@neutral()
def alignment(latents: torch.Tensor, images: torch.Tensor, others: int = 16) -> Alignment:
    """Lengths of latents, and what they have of their images.

    Args:
        latents: (n, C, h, w), finite floats on any device.
        images: likewise.
        others: how many other images each latent is held against, at most n - 1.

    Raises:
        TypeError, ValueError: tensors that cannot be used or do not fit each other.
    """
    x = checked("latents", latents).flatten(1).double()
    i = alike("images", images, "latents", latents).flatten(1).double()
    turns = range(1, min(others, len(x) - 1) + 1)
    apart = [_cosine(x, i.roll(turn, 0)).mean() for turn in turns]
    return Alignment(
        n=len(x),
        length=_length(x) / math.sqrt(x.shape[1]),
        cosine=float(_cosine(x, i).mean()),
        cosine_others=float(torch.stack(apart).mean()) if apart else math.nan,
    )


def _nearer(trajectory: torch.Tensor, noise: torch.Tensor, found: torch.Tensor, latents: torch.Tensor) -> float:
    if not isinstance(trajectory, torch.Tensor) or trajectory.ndim != 5 or len(trajectory) < 2:
        got = tuple(trajectory.shape) if isinstance(trajectory, torch.Tensor) else type(trajectory).__name__
        raise ValueError(f"trajectory must be (m, n, C, h, w) with two nodes or more, x_0 first, got {got}")
    shares = []
    for node in trajectory[:-1]:
        x = alike("each node of the trajectory", node, "latents", latents).flatten(1).double()
        shares.append(((x - noise).norm(dim=1) < (x - found).norm(dim=1)).double().mean())
    return float(torch.stack(shares).mean())


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n,) NaN where a vector has no length."""
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.rad2deg(_cosine(a, b).clamp(-1, 1).acos()).mean())


def _length(a: torch.Tensor) -> float:
    return float(a.norm(dim=1).mean())
