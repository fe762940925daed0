"""What happens to images on their way: the distortions that papers on watermarks try, of 8-bit images.

Strengths follow Tree-Ring (arXiv 2305.20030) and Gaussian Shading (arXiv 2404.04956), whose images are 512 px; what is
counted in pixels scales with the image.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter


def jpeg(image: Image.Image, quality: int = 25) -> Image.Image:
    """As a JPEG file of this quality holds it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    file.seek(0)
    with Image.open(file, formats=("JPEG",)) as again:
        return again.convert("RGB")


def blur(image: Image.Image, radius: float = 4) -> Image.Image:
    """A Gaussian blur; the radius, its standard deviation, is in pixels of a 512 px image."""
    return image.filter(ImageFilter.GaussianBlur(radius * min(image.size) / 512))


def noise(image: Image.Image, std: float = 0.05, seed: int = 0) -> Image.Image:
    """Gaussian noise on every channel, its deviation of values 0 to 1."""
    values = np.asarray(image, dtype=np.float64) / 255
    noisy = values + std * np.random.default_rng(seed).standard_normal(values.shape)
    return Image.fromarray((noisy.clip(0, 1) * 255).round().astype(np.uint8))


def crop(image: Image.Image, share: float = 0.75, seed: int = 0) -> Image.Image:
    """A part of so much of both sides, somewhere, resized to the image's size."""
    width, height = (max(1, round(side * share)) for side in image.size)
    where = random.Random(seed)
    left, top = where.randint(0, image.width - width), where.randint(0, image.height - height)
    return image.resize(image.size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))


def rotate(image: Image.Image, degrees: float = 75) -> Image.Image:
    """Turned about its middle; corners are black."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def brightness(image: Image.Image, factor: float = 2) -> Image.Image:
    """Every value times this, clipped."""
    return ImageEnhance.Brightness(image).enhance(factor)


ATTACKS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "none": lambda image, seed: image,
    "jpeg": lambda image, seed: jpeg(image),
    "blur": lambda image, seed: blur(image),
    "noise": lambda image, seed: noise(image, seed=seed),
    "crop": lambda image, seed: crop(image, seed=seed),
    "rotate": lambda image, seed: rotate(image),
    "brightness": lambda image, seed: brightness(image),
}
"""By name: an RGB image and a seed to an RGB image of the same size."""
