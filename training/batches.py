"""Pictures as the networks see them: emoji on white or plain colours, scaled and shifted, and crops of photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from training.data import Data, Emoji, Photo

PHOTO_SHARE = 0.25
WHITE_SHARE = 0.6
NAMED_SHARE = 0.5  # of the crops: from the first photographs, whose captions name a thing
NAMED = 4


def draw(
    data: Data, rng: np.random.Generator, count: int, side: int = 64, photos: float = PHOTO_SHARE
) -> tuple[torch.Tensor, list[str]]:
    """(count, 3, side, side) in [-1, 1] and the captions; `photos` is the share of photograph crops."""
    pictures, captions = [], []
    for _ in range(count):
        if photos and rng.random() < photos:
            few = data.photos[:NAMED] if rng.random() < NAMED_SHARE else data.photos
            item = few[rng.integers(len(few))]
            pictures.append(crop(item, rng, side))
        else:
            item = data.emoji[rng.integers(len(data.emoji))]
            pictures.append(compose(item, rng, side))
        captions.append(item.caption)
    return as_tensor(pictures), captions


def compose(item: Emoji, rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """An emoji at 60 to 100 % of the side, somewhere, on white or on a plain colour."""
    colour = (255, 255, 255) if rng.random() < WHITE_SHARE else tuple(int(c) for c in rng.integers(0, 256, 3))
    width = round(side * rng.uniform(0.6, 1.0))
    left, top = (int(v) for v in rng.integers(0, side - width + 1, 2))
    return place(item, side, width, left, top, colour)


def place(item: Emoji, side: int, width: int, left: int, top: int, colour: tuple[int, int, int]) -> np.ndarray:
    """The emoji at a given width and corner on a plain ground, resized with premultiplied alpha: no dark rims."""
    picture = Image.fromarray(item.pixels, "RGBA").convert("RGBa").resize((width, width), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (side, side), (*colour, 255))
    ground.alpha_composite(picture.convert("RGBA"), (left, top))
    return np.asarray(ground.convert("RGB"))


def centred(item: Emoji, side: int = 64) -> np.ndarray:
    """The emoji at 7/8 of the side in the middle of white: how the samples and the evaluation show it."""
    width = side * 7 // 8
    return place(item, side, width, (side - width) // 2, (side - width) // 2, (255, 255, 255))


def crop(item: Photo, rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """A square of a photograph, of 64 px to all of its shorter side, perhaps mirrored, resized."""
    height, width = item.pixels.shape[:2]
    size = round(float(np.exp(rng.uniform(np.log(64), np.log(min(height, width))))))
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    picture = Image.fromarray(item.pixels[top : top + size, left : left + size])
    picture = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def as_tensor(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """(n, 3, h, w) in [-1, 1] of (h, w, 3) uint8 pictures."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def varied(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each turned by a multiple of 90 degrees, perhaps mirrored, its colours exchanged; (n, 3, side, side)."""
    found = []
    for picture in pictures:
        turned = torch.rot90(picture[torch.from_numpy(rng.permutation(3))], int(rng.integers(4)), (1, 2))
        found.append(turned.flip(2) if rng.random() < 0.5 else turned)
    return torch.stack(found)
