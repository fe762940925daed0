"""The result of a way back: `reconstruct`'s, and `edit`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from invfast import images, plain
from invfast.inversion import Stats

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(eq=False)
class Reconstruction(BaseOutput):
    """What `reconstruct` and `edit` return. Equal are two whose every field is, as with `Inversion`.

    Args:
        images: list of PIL images, numpy (B, H, W, 3) or torch (B, 3, H, W) in [0, 1], or the latents, by output_type.
        latents: (B, C, h, w) the reconstructed x_0.
        stats: how the run went.
        partner: of EDICT the other latent of the pair at the data end, (B, C, h, w): where it is far from `latents`,
            the edit is one that the pair does not agree on. None elsewhere.
    """

    images: Any
    latents: torch.Tensor
    stats: Stats
    partner: torch.Tensor | None = None

    __eq__ = plain.same_fields
    __repr__ = plain.line

    def __ne__(self, other: object) -> bool:  # its base is a dict, which has one of its own
        return not self == other


def check_output_type(output_type: str) -> None:
    """Raises ValueError where it is none."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"unknown output_type {output_type!r}; expected one of {OUTPUT_TYPES}")


def present(pixels: torch.Tensor, output_type: str) -> Any:
    """Pixels (B, 3, H, W) in [0, 1] as a caller wants them."""
    if output_type == "pt":
        return pixels.clone()
    return images.to_pil(pixels) if output_type == "pil" else pixels.permute(0, 2, 3, 1).cpu().numpy()
