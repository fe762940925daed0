"""Images in and pictures out: one place that reads what users pass, one that draws grids.

Resizing and normalisation are diffusers' VaeImageProcessor; only what it gets wrong is settled here first: transparent
pixels go over white (dropping alpha turns white backgrounds black), EXIF rotation is applied, uint8 arrays are divided.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")


def load(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as RGB; EXIF orientation applied, transparency over white.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a PNG, JPEG or WebP image, cut short, or more pixels than Pillow's MAX_IMAGE_PIXELS.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"image {str(path)!r} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"image {str(path)!r} is not one of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image {str(path)!r} is too large: {error}") from error
    except OSError as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB: transparency over white, 16-bit greys scaled down."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / 257.0).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    return image.convert("RGB")


def to_pixels(image: Any, factor: int, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """Whatever a user passes as images, as one batch.

    Args:
        image: PIL image, path, numpy array (H, W), (H, W, C) or (B, H, W, C), torch tensor (C, H, W) or (B, C, H, W),
            or a list of one kind of them. Integers are 0 to 255; floats 0 to 1, or -1 to 1 where any is negative.
        factor: the VAE's downsampling; sizes are multiples of it.
        height, width: size to resize to; by default the image's own, rounded down to the factor (up, below it).

    Returns:
        (B, 3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: empty or zero-sized input, images of different sizes without height and width, a size that is no
            multiple of the factor, values out of range or not finite.
        TypeError: something that is no image.
    """
    images = list(image) if isinstance(image, Sequence) and not isinstance(image, str) else [image]
    if not images:
        raise ValueError("no images: the list is empty")
    batches = [_as_tensor(each) for each in images]
    sizes = {tuple(b.shape[2:]) for b in batches}
    if len(sizes) > 1 and (height is None or width is None):
        raise ValueError(f"images of different sizes {sorted(sizes)}: pass height and width to resize them alike")
    own_height, own_width = max(sizes)
    size = (_side("height", height, own_height, factor), _side("width", width, own_width, factor))
    processor = VaeImageProcessor(vae_scale_factor=factor)
    pixels = []
    for original, batch in zip(images, batches, strict=True):
        picture = _as_pil(original)
        source = batch if picture is None else picture
        if picture is None and bool((batch < 0).any()):
            source = batch / 2 + 0.5  # the processor wants [0, 1]
        pixels.append(processor.preprocess(source, *size))
    return torch.cat(pixels).float()


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] as 8-bit PIL images."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))


def latents_to_pil(latents: torch.Tensor) -> list[Image.Image]:
    """Latents (B, C, h, w) to look at: their first three channels as RGB, -3 to 3 over black to white."""
    return to_pil((latents[:, :3].float() / 6 + 0.5).clamp(0, 1))


def grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str], cell: int = 128
) -> Image.Image:
    """Rows of pictures under column titles, a name before each row; every picture is scaled to `cell` pixels."""
    font = ImageFont.load_default(13)
    gap, head = 4, 18 * max(title.count("\n") + 1 for title in columns) + 6
    left = 12 + int(max(font.getlength(name) for name in names))
    step = cell + gap
    canvas = Image.new("RGB", (left + step * len(columns), head + step * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for c, title in enumerate(columns):
        draw.multiline_text((left + step * c + cell / 2, head - 4), title, "black", font, anchor="md", align="center")
    for r, (row, name) in enumerate(zip(rows, names, strict=True)):
        draw.text((left - 8, head + step * r + cell / 2), name, "black", font, anchor="rm")
        for c, picture in enumerate(row):
            scaled = picture.resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(scaled, (left + step * c, head + step * r))
    return canvas


def _as_pil(image: Any) -> Image.Image | None:
    """8-bit images stay PIL, so that the processor resizes them with a proper filter; None for float arrays."""
    if isinstance(image, Image.Image):
        return as_rgb(image)
    if isinstance(image, (str, os.PathLike)):
        return load(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim < 4:
        return as_rgb(Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image))
    return None


def _as_tensor(image: Any) -> torch.Tensor:
    """(B, 3, H, W) float; checks kind, rank, size, range."""
    picture = _as_pil(image)
    if picture is not None:
        image = np.asarray(picture)
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3, 4):
            raise ValueError(f"an image array needs shape (H, W), (H, W, C) or (B, H, W, C), got {image.shape}")
        image = image[..., None] if image.ndim == 2 else image
        tensor = torch.from_numpy(np.array(image))
        tensor = (tensor if tensor.ndim == 4 else tensor[None]).permute(0, 3, 1, 2)
    elif isinstance(image, torch.Tensor):
        if image.ndim not in (3, 4):
            raise ValueError(f"an image tensor needs shape (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
        tensor = image.detach().cpu() if image.ndim == 4 else image.detach().cpu()[None]
    else:
        raise TypeError(f"an image must be a PIL image, path, numpy array or torch tensor, got {type(image).__name__}")
    return _three_channels(_unit_range(tensor))


def _unit_range(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.numel() == 0:
        raise ValueError(f"image has no pixels: shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        if tensor.dtype != torch.uint8:
            raise ValueError(f"integer images must be uint8 (0 to 255), got {tensor.dtype}")
        return tensor.float() / 255
    tensor = tensor.float()
    low, high = float(tensor.min()), float(tensor.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("image has non-finite pixels; expected floats in [0, 1] or [-1, 1]")
    if low < -1.001 or high > 1.001:
        raise ValueError(f"float images must lie in [0, 1] or [-1, 1], got {low:.4g} to {high:.4g}; divide by 255?")
    return tensor.clamp(-1, 1)


def _three_channels(tensor: torch.Tensor) -> torch.Tensor:
    channels = tensor.shape[1]
    if channels == 1:
        return tensor.expand(-1, 3, -1, -1)
    if channels == 4 and bool((tensor >= 0).all()):
        return tensor[:, :3] * tensor[:, 3:] + 1 - tensor[:, 3:]
    if channels != 3:
        raise ValueError(f"an image needs 1, 3 or 4 (RGBA, 0 to 1) channels, got {channels}")
    return tensor


def _side(name: str, given: int | None, own: int, factor: int) -> int:
    if given is None:
        return max(own - own % factor, factor)
    if not isinstance(given, int) or given < factor or given % factor:
        raise ValueError(f"{name} must be a positive multiple of {factor}, got {given!r}")
    return given
