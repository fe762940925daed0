"""Unconditional pixel-space pipelines, DDPMPipeline and DDIMPipeline: a UNet2DModel of images and nothing else."""

from __future__ import annotations

from typing import Any

import torch

from invfast import images
from invfast.adapters import unets
from invfast.adapters.base import Adapter, Prompts
from invfast.denoiser import Condition, Form


class Unconditional(Adapter):
    """Latents are the pixels themselves, in [-1, 1]. There is no prompt, and so no guidance.

    The pipelines' own schedulers often clip the predicted sample to [-1, 1]; a clipped step cannot be undone, so the
    grid here is without.
    """

    description = (
        "an unconditional DDPMPipeline or DDIMPipeline (a UNet2DModel that predicts as many channels as it takes)"
    )

    @staticmethod
    def supports(pipe: Any) -> bool:
        unet = getattr(pipe, "unet", None)
        if unet is None or getattr(pipe, "scheduler", None) is None or getattr(pipe, "vae", None) is not None:
            return False
        config = unet.config
        plain = "cross_attention_dim" not in config and config.get("class_embed_type") is None
        return plain and config.get("num_class_embeds") is None and config.in_channels == config.out_channels == 3

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": self.pipe.unet}

    def form(self) -> Form:
        return unets.form(self.pipe.unet)

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, 3, H, W), the pixels in [-1, 1]; sizes are multiples of the network's downsampling."""
        pixels = images.to_pixels(image, unets.halvings(self.pipe.unet), height, width)
        return pixels.to(self.device, self.latent_dtype)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def guidance(self, scale: float) -> float:
        return 1.0

    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        """Nothing.

        Raises:
            ValueError: a prompt, embeddings or guidance, which this pipeline cannot follow.
        """
        embeds = prompts.embeds is not None or prompts.negative_embeds is not None
        if embeds or any(prompts.texts or ()) or any(prompts.negative or ()) or guidance_scale > 1:
            raise ValueError(
                f"{type(self.pipe).__name__} is unconditional: pass no prompt, no embeddings and guidance_scale=1"
            )
        return {}, None
