"""Masks: which part of an image an edit may change, at the latents' size and at the image's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def read(mask: Any, batch: int) -> torch.Tensor:
    """Masks as callers give them, (1 or B, 1, H, W) in [0, 1]: 1 where the edit may change the image.

    Args:
        mask: a PIL image, a path, a numpy array or tensor (H, W) or (B, 1, H, W), bool, uint8 or floats in [0, 1]; or
            a list of these, one an image.
        batch: B.

    Raises:
        TypeError: something else. ValueError: another shape or range, or no image of the batch's number.
    """
    if isinstance(mask, (list, tuple)):
        each = [read(one, 1) for one in mask]
        if len({one.shape for one in each}) != 1:
            raise ValueError("masks of one call must have one size; resize them first")
        found = torch.cat(each)
    else:
        found = _one(mask)
    if len(found) not in (1, batch):
        raise ValueError(f"mask has {len(found)} masks for {batch} images; pass one for all, or one an image")
    if not bool(((found >= 0) & (found <= 1)).all()):  # NaN is neither
        raise ValueError("mask must lie in [0, 1] (1 where the edit may change the image), without NaN")
    return found


def of_boxes(boxes: Sequence[Sequence[int]], height: int, width: int) -> torch.Tensor:
    """(1, 1, height, width), 1 inside the boxes (left, top, right, bottom).

    Raises:
        ValueError: a box outside the image.
    """
    found = torch.zeros(1, 1, height, width)
    for left, top, right, bottom in boxes:
        if left < 0 or top < 0 or right > width or bottom > height:
            raise ValueError(f"the box {(left, top, right, bottom)} leaves the image of {width} x {height} pixels")
        found[..., top:bottom, left:right] = 1
    return found


def for_latents(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The mask at the latents' size: where any pixel of a latent's square may change, the latent may as much."""
    return F.adaptive_max_pool2d(mask, (height, width))


def composed(edited: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W): the source's outside the mask, which a decoder's reach would change at its border."""
    weight = mask if mask.shape[2:] == edited.shape[2:] else F.interpolate(mask, edited.shape[2:], mode="area")
    return torch.lerp(source, edited, weight.to(edited))


def _one(mask: Any) -> torch.Tensor:
    if isinstance(mask, (str, Path)):
        if not Path(mask).is_file():
            raise FileNotFoundError(f"mask {str(mask)!r} does not exist")
        with Image.open(mask) as image:
            mask = image.copy()
    if isinstance(mask, Image.Image):
        mask = np.array(mask.convert("L"))
    if not isinstance(mask, (np.ndarray, torch.Tensor)):
        raise TypeError(f"mask must be an image, a path, a numpy array or a tensor, got {type(mask).__name__}")
    found = torch.as_tensor(np.array(mask) if isinstance(mask, np.ndarray) else mask).detach().cpu()
    found = found.float() / 255 if found.dtype == torch.uint8 else found.float()
    if found.ndim == 2:
        found = found[None, None]
    if found.ndim != 4 or found.shape[1] != 1 or not found.numel():
        raise ValueError(f"mask must be (H, W) or (B, 1, H, W), got {tuple(found.shape)}")
    return found
