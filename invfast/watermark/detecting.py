"""Looking for keys: in images, by inverting them, or in latents that are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from invfast import api, plain
from invfast.ambient import neutral
from invfast.arguments import Text
from invfast.inversion import Inversion
from invfast.methods import Method
from invfast.watermark.base import Key, Score
from invfast.watermark.sampling import factor_of

Keys = Key | Sequence[Key]


@dataclass(frozen=True, eq=False)
class Detection:
    """What was found in a batch of images.

    Args:
        scores: one an image, in their order.
        inversion: of all of them; its stats say what it cost.
    """

    scores: tuple[Score, ...]
    inversion: Inversion

    __repr__ = plain.line


@neutral()
def score(latents: torch.Tensor | Inversion, keys: Keys) -> tuple[Score, ...]:
    """What keys say of latents.

    Args:
        latents: (n, C, h, w), finite floats on any device, or an inversion that went through to the noise.
        keys: one, or several for latents of one shape: then of each image the surest key's score, its p-value that of
            the least of as many, 1 - (1 - p)^keys.

    Returns:
        One score for each of the latents.

    Raises:
        TypeError, ValueError: latents or keys that cannot be used, an inversion that was interrupted, or their shapes
            differ.
        ImportError: scipy is missing.
    """
    every = keys_of(keys)
    if isinstance(latents, Inversion):
        _check_through(latents)
        latents = latents.latents
    found = [key.read(key.checked(latents)) for key in every]
    return tuple(_surest(each) for each in zip(*found, strict=True))


def detect(
    pipe: Any,
    image: Any,
    keys: Keys,
    prompt: Text | None = "",
    *,
    method: str | Method = "auto",
    num_inference_steps: int = 50,
    height: int | None = None,
    width: int | None = None,
    **options: Any,
) -> Detection:
    """Looks for keys in images. Each image's score is its own: a batch is its images.

    Args:
        pipe: the pipeline that made the images, or one like it; left untouched.
        image: what `invert` takes.
        keys: one, or several; see `score`.
        prompt: what the images show, where that is known; who finds an image does not know it.
        method: how they are inverted.
        num_inference_steps: steps of the grid.
        height: images are resized to this; by default to the size that the key is for.
        width: likewise.
        **options: of `invert`.

    Raises:
        TypeError, ValueError, FloatingPointError: as `invert` and `score`.
        ImportError: scipy is missing.
    """
    every = keys_of(keys)
    shape, factor = every[0].shape, factor_of(pipe)
    if not (isinstance(image, torch.Tensor) and tuple(image.shape[1:]) == shape):  # those are latents
        height = shape[1] * factor if height is None else height
        width = shape[2] * factor if width is None else width
    sizes = {"height": height, "width": width}
    inversion = api.invert(
        pipe, image, prompt, method=method, num_inference_steps=num_inference_steps, **sizes, **options
    )
    return Detection(score(inversion, every), inversion)


def keys_of(keys: Any) -> tuple[Key, ...]:
    every = (keys,) if isinstance(keys, Key) else tuple(keys) if isinstance(keys, Sequence) else ()
    strange = [type(each).__name__ for each in every if not isinstance(each, Key)]
    if strange or not every:
        got = strange[0] if strange else type(keys).__name__ if not isinstance(keys, (list, tuple)) else "no key"
        raise TypeError(f"keys must be a watermark.Key or a list of them, got {got}")
    shapes = sorted({each.shape for each in every})
    if len(shapes) > 1:
        raise ValueError(f"keys must be for latents of one shape, these are for {shapes}; ask for them one by one")
    return every


def _check_through(inversion: Inversion) -> None:
    steps = inversion.schedule.num_steps
    if inversion.node < steps:
        raise ValueError(f"the inversion was interrupted at node {inversion.node} of {steps}; its latents are no noise")


def _surest(scores: Sequence[Score]) -> Score:
    """Of one image's scores, one a key."""
    at = min(range(len(scores)), key=lambda j: (scores[j].p_value, -scores[j].statistic))
    p = scores[at].p_value
    least = p if len(scores) == 1 or p >= 1 else -math.expm1(len(scores) * math.log1p(-p))
    return replace(scores[at], key=at, p_value=least)
