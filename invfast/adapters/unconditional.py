"""Pixel-space pipelines without text, DDPMPipeline and DDIMPipeline: a UNet2DModel of images, and perhaps classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from invfast import images
from invfast.adapters import door, labels, unets
from invfast.adapters.base import Adapter, Prompts
from invfast.denoiser import Condition, Form


class Unconditional(Adapter):
    """Latents are the pixels themselves, in [-1, 1]. There is no prompt, and so no guidance. Of a network that also
    predicts its variance (ADM) the mean alone counts, as for DDIM.

    The pipelines' own schedulers often clip the predicted sample to [-1, 1]; a clipped step cannot be undone, so the
    grid here is without.
    """

    description = "a DDPMPipeline or DDIMPipeline (a UNet2DModel of three channels, with class labels or without)"

    pipelines = ("DDPMPipeline", "DDIMPipeline")
    takes = ("class_labels",)

    def unfit(self) -> Iterator[str]:
        yield from door.unfit(self.pipe.unet, self.channels, labels=True)

    @property
    def channels(self) -> int:
        """Of the latents."""
        return 3

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        found, unet = super().check(batch, more), self.pipe.unet
        if not self.takes:
            return found
        known, classes = getattr(unet, "class_embedding", None) is not None, unet.config.get("num_class_embeds")
        given = labels.checked(found.get("class_labels"), batch, classes, known, type(self.pipe).__name__)
        return {} if given is None else {"class_labels": given}

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
        """The class labels, where the network knows classes.

        Raises:
            ValueError: a prompt, embeddings or guidance, which this pipeline cannot follow.
        """
        self.no_texts(prompts)
        if guidance_scale > 1:
            raise ValueError(f"{type(self.pipe).__name__} knows no guidance: pass guidance_scale=1")
        if getattr(self.pipe.unet, "class_embedding", None) is None:
            return {}, None
        given = prompts.more.get("class_labels", [0] * len(latents))
        return {"class_labels": torch.tensor(given, device=self.device)}, None
