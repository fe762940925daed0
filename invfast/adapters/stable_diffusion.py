"""Stable Diffusion 1.x and 2.x: an AutoencoderKL, one text encoder, a UNet2DConditionModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from invfast.adapters import controlnets, door, steering, texts, unets
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Adapter, Prompts
from invfast.denoiser import Condition, Form


class StableDiffusion(Adapter):
    """Latents are the VAE's posterior mean times its scaling factor; the condition is the text encoder's output."""

    description = (
        "Stable Diffusion 1.x or 2.x (a vae and a UNet2DConditionModel of its latents, one text encoder or none)"
    )

    pipelines = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
    )
    takes, again = steering.TAKES, steering.IMAGES

    def unfit(self) -> Iterator[str | None]:
        found = list(door.unfit(self.pipe.unet, door.channels(self.pipe), images=True))
        yield from found or controlnets.unfit(self.pipe)
        yield door.patched(self.pipe)

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        return steering.check(self.pipe, super().check(batch, more))

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": controlnets.network(self.pipe), "vae": self.pipe.vae}

    def form(self) -> Form:
        return controlnets.form(self.pipe)

    def encoders(self) -> dict[str, Any]:
        return {name: getattr(self.pipe, name, None) for name in ("text_encoder", "tokenizer")}

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w): the posterior mean times the scaling factor; latents pass through, checked.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        latents = self.latents_of(image, height, width)
        return Autoencoder.of(self).encode(image, height, width) if latents is None else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        return Autoencoder.of(self).decode(latents)

    def guidance(self, scale: float) -> float:
        return unets.guidance(self.pipe.unet, scale)

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        def encode(text: str) -> tuple[torch.Tensor]:
            return self.pipe.encode_prompt(text, self.device, 1, False)[:1]

        positive, negative = texts.conditions(self, len(latents), prompts, guidance_scale, encode)
        positive |= unets.guided(self.pipe, len(latents), guidance_scale, self.device)
        return steering.steered(self, latents, prompts.more, (positive, negative))
