"""PSNR, MSE and SSIM of an edit beside its source, outside of the mask and inside.

As published (cure-lab/PnPInversion, evaluation/matrics_calculator.py) both images are multiplied by the part that is
looked at, and the metric is taken of all pixels, those that became 0 in both among them: they count as equal. So MSE
falls, and PSNR rises, with the share that is masked: a part of a tenth of the image has 10 dB more than its own pixels
differ by. `psnr_alone` and `mse_alone` are of the background's pixels and no others.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from invfast import metrics

Figures = dict[str, float | None]


def tensor(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1], float64."""
    return torch.from_numpy(np.asarray(picture, np.float64) / 255).permute(2, 0, 1)[None]


def pixels(source: Image.Image, edited: Image.Image, mask: np.ndarray) -> Figures:
    """Figures by name; None where a part has no pixels, and of a PSNR that is infinite.

    Args:
        source, edited: RGB, of one size.
        mask: (H, W) bool, True where the image is to be edited.

    Raises:
        ValueError: sizes that differ.
    """
    if source.size != edited.size or mask.shape[::-1] != source.size:
        raise ValueError(f"source, edit and mask differ in size: {source.size}, {edited.size}, {mask.shape[::-1]}")
    x, y = tensor(source), tensor(edited)
    found: Figures = {}
    for name, part in (("", ~mask), ("_inside", mask)):
        weight = torch.from_numpy(part)
        found |= {f"{key}{name}": value for key, value in _part(x * weight, y * weight, bool(part.any())).items()}
    outside = torch.from_numpy(~mask)
    mse = float(((x - y) ** 2)[..., outside].mean()) if outside.any() else None
    return {**found, "mse_alone": mse, "psnr_alone": -10 * math.log10(mse) if mse else None}


def _part(x: torch.Tensor, y: torch.Tensor, there: bool) -> Figures:
    if not there:
        return dict.fromkeys(("psnr", "mse", "ssim"))
    mse = float(((x - y) ** 2).mean())
    return {"psnr": float(metrics.psnr(y, x)) if mse else None, "mse": mse, "ssim": float(metrics.ssim(y, x))}
