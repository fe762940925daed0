"""Unconditional latent diffusion, LDMPipeline: Rombach et al., CVPR 2022 (arXiv 2112.10752)."""

from __future__ import annotations

from typing import Any

import torch

from invfast.adapters import door, unets
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.unconditional import Unconditional


class LatentDiffusion(Unconditional):
    """As in pixel space, on the latents of a VQModel before their codes; it is decoded through them."""

    description = "an LDMPipeline (a UNet2DModel of a VQModel's latents)"
    pipelines = ("LDMPipeline",)

    @property
    def channels(self) -> int:
        return door.channels(self.pipe, "vqvae")

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": self.pipe.unet, "vae": self.pipe.vqvae}

    def are_latents(self, image: Any) -> bool:
        return self.channels != 3 and super().are_latents(image)

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w); sizes are multiples of what autoencoder and network halve.

        Latents of three channels, as the published models have them, look like images: then every tensor is images.
        """
        latents, vae = self.latents_of(image, height, width), Autoencoder.of(self)
        if latents is not None:
            return latents
        return vae.encode(image, height, width, unets.halvings(self.pipe.unet))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return Autoencoder.of(self).decode(latents)
