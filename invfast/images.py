"""Images in: one place that reads what users pass, and what tensors look like; `figures` draws and writes.

Resizing and normalisation are diffusers' VaeImageProcessor; what it leaves to chance is settled here first: transparent
pixels go over white (dropping alpha turns white backgrounds black), EXIF rotation is applied, uint8 arrays are divided,
and every container is resized by the same filter.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
"""What is read, as Pillow calls it, and how such files end. HEIF needs pillow-heif, `pip install "invfast[heic]"`."""
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
FITS = ("crop", "pad", "squash")

MAX_PIXELS = 64 * 2**20
"""A file with more is refused before it is decoded."""

NEGATIVE = -1e-3
"""Below this a float image is in [-1, 1]; above it a negative value is the rounding of a resize, and clamped."""


def load(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as RGB; EXIF orientation applied, transparency over white.

    Of several frames the first is taken, with a warning.

    Raises:
        FileNotFoundError: no such file.
        ValueError: none of FORMATS, broken or cut short, a folder, or more pixels than MAX_PIXELS or Pillow's own
            limit.
    """
    name = f"image {str(path)!r}"
    if not Path(path).exists():
        raise FileNotFoundError(f"{name} does not exist")
    with _named(name):
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise OSError("it is a folder, or something else that is no file")
        with _opened(path) as image:
            return _first(image, name)


def decode(content: bytes, name: str) -> Image.Image:
    """`load` of a file that was read already; `name` is what errors call it."""
    with _named(f"image {name!r}"), _opened(io.BytesIO(content)) as image:
        return _first(image, f"image {name!r}")


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """(width, height) that `decode` will have, by the header of a file alone."""
    with _named(f"image {name!r}"), _opened(io.BytesIO(content)) as image:
        # Not PNG's own getexif, which decodes the whole image for a tag that may come after it.
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def _first(image: Image.Image, name: str) -> Image.Image:
    """The image, or the first of several frames, as RGB."""
    # Phones keep a second picture, for depth, in a JPEG: none that anyone means.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        logger.warning("%s has %d frames; the first is taken", name, image.n_frames)
    image.seek(0)
    return as_rgb(image)


def _opened(file: Any) -> Image.Image:
    """A file's image, its pixels not decoded yet, which are not too many."""
    try:
        image = Image.open(file, formats=[each for each in FORMATS if each != "HEIF"])
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
        _register_heif()
        image = Image.open(file, formats=["HEIF"])
    most = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)  # Pillow only warns above its own
    if image.width * image.height > most:
        image.close()
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, at most {most}")
    return image


def _is_heif(file: Any) -> bool:
    """Whether an ISO media file begins with a brand of HEIF."""
    if hasattr(file, "seek"):
        file.seek(0)
        head = file.read(12)
        file.seek(0)
    else:
        with open(file, "rb") as opened:
            head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError('HEIC needs pillow-heif; pip install "invfast[heic]", or save it as JPEG') from error
    register_heif_opener(thumbnails=False)


@dataclass(frozen=True)
class Frame:
    """One size for pictures of any, and how they come to it.

    Args:
        width: px.
        height: px.
        fit: "crop" cuts what is too long for the frame's shape, from the middle; "pad" keeps all, with white beside it;
            "squash" distorts, as `to_pixels` does.

    Raises:
        ValueError: a side below 1, more pixels than MAX_PIXELS, or another fit.
    """

    width: int
    height: int
    fit: str = "crop"

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1:
            raise ValueError(f"a size must be at least 1 x 1, got {self.width} x {self.height}")
        if self.width * self.height > MAX_PIXELS:  # a typing error ends here, not where memory does
            raise ValueError(f"a size may have {MAX_PIXELS} pixels at most, got {self.width} x {self.height}")
        if self.fit not in FITS:
            raise ValueError(f"unknown fit {self.fit!r}; expected one of {', '.join(FITS)}")

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image at the frame's size, by Lanczos; `to_pixels` then has nothing left to do."""
        if image.size == self.size:
            return image
        if self.fit == "squash":
            return VaeImageProcessor().resize(image, self.height, self.width)
        if self.fit == "pad":
            share = min(self.width / image.width, self.height / image.height)
            inner = [max(1, round(side * share)) for side in image.size]  # ImageOps.pad fails beyond 128 to 1
            paper = Image.new("RGB", self.size, "white")
            place = [(whole - side) // 2 for whole, side in zip(self.size, inner, strict=True)]
            paper.paste(image.resize(inner, Image.Resampling.LANCZOS), place)
            return paper
        return ImageOps.fit(image, self.size, Image.Resampling.LANCZOS)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What fails while an image is decoded is a ValueError that names it."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not one of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except Exception as error:
        # A decoder may stumble over broken bytes in any way: SyntaxError, struct.error, zlib.error, EOFError, ...
        raise ValueError(f"{name} cannot be read: {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB: EXIF orientation applied, transparency over white, deep greys scaled down.

    Mode F is read as 0 to 1 where nothing is above 1, else as 0 to 255; mode I as 0 to 255, or 0 to 65535 where any
    value is above 255.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        top = values.max(initial=0)
        deep = image.mode.startswith("I;16") or (image.mode == "I" and top > 255)
        scale = 1 / 257 if deep else 255 if image.mode == "F" and top <= 1 else 1
        image = Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
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
            or a list of them. Integers are uint8, 0 to 255; floats 0 to 1, or all of them -1 to 1 where any is below 0.
            Floats that have to be resized are rounded to 8 bits first, so that all kinds meet the same filter.
        factor: the VAE's downsampling; sizes are multiples of it.
        height: to resize to; by default the images' own, rounded down to the factor (up, below it).
        width: likewise.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: empty or zero-sized input, images of different sizes without height and width, a size that is no
            multiple of the factor, values out of range or not finite, a PIL image or file that cannot be decoded.
        TypeError: something that is no image.
    """
    given = list(image) if isinstance(image, (list, tuple)) else [image]
    if not given:
        raise ValueError("no images: the list is empty")
    pictures = [picture for each in given for picture in _pictures(each)]
    sizes = {_size(picture) for picture in pictures}
    if len(sizes) > 1 and (height is None or width is None):
        raise ValueError(f"images of different sizes {sorted(sizes)}: pass height and width to resize them alike")
    own_height, own_width = max(sizes)
    size = (_side("height", height, own_height, factor), _side("width", width, own_width, factor))
    signed = any(isinstance(p, torch.Tensor) and float(p.min()) < NEGATIVE for p in pictures)
    processor = VaeImageProcessor(vae_scale_factor=factor)
    pixels = []
    for picture in pictures:
        if isinstance(picture, torch.Tensor):
            picture = _on_white(picture / 2 + 0.5 if signed and len(picture) != 4 else picture.clamp(min=0))
            if size != _size(picture):
                (picture,) = to_pil(picture[None])
        source = picture if isinstance(picture, Image.Image) else picture[None]
        pixels.append(processor.preprocess(source, *size))
    return torch.cat(pixels).float()


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] as 8-bit PIL images."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))


def latents_to_pil(latents: torch.Tensor) -> list[Image.Image]:
    """Latents (B, C, h, w) to look at: their first three channels as RGB, -3 to 3 over black to white."""
    return to_pil((latents[:, :3].float() / 6 + 0.5).clamp(0, 1))


def _pictures(image: Any) -> Iterator[Image.Image | torch.Tensor]:
    """One PIL RGB image (8-bit input) or one (C, H, W) float tensor at a time; kind, rank, size and range checked."""
    if isinstance(image, Image.Image):
        with _named("the PIL image"):  # one opened from a file is decoded only now
            picture = as_rgb(image)
        yield picture
    elif isinstance(image, (str, os.PathLike)):
        yield load(image)
    elif isinstance(image, np.ndarray):
        if image.ndim not in (2, 3, 4):
            raise ValueError(f"an image array needs shape (H, W), (H, W, C) or (B, H, W, C), got {image.shape}")
        image = image[..., None] if image.ndim == 2 else image
        batch = image if image.ndim == 4 else image[None]
        yield from _tensor_pictures(torch.from_numpy(np.array(batch)).permute(0, 3, 1, 2))
    elif isinstance(image, torch.Tensor):
        if image.ndim not in (3, 4):
            raise ValueError(f"an image tensor needs shape (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
        yield from _tensor_pictures(image.detach().cpu() if image.ndim == 4 else image.detach().cpu()[None])
    else:
        raise TypeError(f"an image must be a PIL image, path, numpy array or torch tensor, got {type(image).__name__}")


def _tensor_pictures(batch: torch.Tensor) -> Iterator[Image.Image | torch.Tensor]:
    if batch.numel() == 0:
        raise ValueError(f"image has no pixels: shape {tuple(batch.shape)}")
    if batch.shape[1] not in (1, 3, 4):
        raise ValueError(f"an image needs 1, 3 or 4 (RGBA) channels, got {batch.shape[1]}")
    if not batch.is_floating_point():
        if batch.dtype != torch.uint8:
            raise ValueError(f"integer images must be uint8 (0 to 255), got {batch.dtype}")
        for picture in batch:
            array = picture.permute(1, 2, 0).numpy()
            yield as_rgb(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array))
        return
    batch = batch.float()
    low, high = float(batch.min()), float(batch.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("image has non-finite pixels; expected floats in [0, 1] or [-1, 1]")
    if low < -1.001 or high > 1.001 or (batch.shape[1] == 4 and low < NEGATIVE):
        expected = "RGBA in [0, 1]; latents need a batch, (B, 4, h, w)" if batch.shape[1] == 4 else "[0, 1] or [-1, 1]"
        raise ValueError(f"float images must lie in {expected}; got {low:.4g} to {high:.4g}")
    yield from batch.clamp(-1, 1)


def _on_white(picture: torch.Tensor) -> torch.Tensor:
    """(3, H, W) from one, three or four (RGBA) channels in [0, 1]."""
    if len(picture) == 4:
        return picture[:3] * picture[3:] + 1 - picture[3:]
    return picture.expand(3, -1, -1)


def _size(picture: Image.Image | torch.Tensor) -> tuple[int, int]:
    return (picture.height, picture.width) if isinstance(picture, Image.Image) else tuple(picture.shape[1:])


def _side(name: str, given: int | None, own: int, factor: int) -> int:
    if given is None:
        return max(own - own % factor, factor)
    if not isinstance(given, Integral) or isinstance(given, bool) or given < factor or given % factor:
        raise ValueError(f"{name} must be a positive multiple of {factor}, got {given!r}")
    return int(given)
