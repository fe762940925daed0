"""Pixel-space pipelines without text, DDPMPipeline and DDIMPipeline: a UNet2DModel of images, and perhaps classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch

from invfast import images
from invfast.adapters import door, unets
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
        yield from door.unfit(self.pipe.unet, 3, labels=True)

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        found, many = super().check(batch, more), self.pipe.unet.config.get("num_class_embeds")
        labelled = getattr(self.pipe.unet, "class_embedding", None) is not None
        given = found.get("class_labels")
        if labelled != (given is not None):
            needs = (
                "needs class_labels, a number or one an image" if labelled else "knows no classes; pass no class_labels"
            )
            raise ValueError(f"the network of this {type(self.pipe).__name__} {needs}")
        if labelled:
            found["class_labels"] = labels = list(given) if isinstance(given, Sequence) else [given] * batch
            whole = all(isinstance(each, Integral) and not isinstance(each, bool) and each >= 0 for each in labels)
            if len(labels) != batch or not whole or (many is not None and max(labels) >= many):
                below = "" if many is None else f" below {many}"
                raise ValueError(f"class_labels must be {batch} integers of at least 0{below}, got {given!r}")
        return found

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
        embeds = prompts.embeds is not None or prompts.negative_embeds is not None
        if embeds or any(prompts.texts or ()) or any(prompts.negative or ()) or guidance_scale > 1:
            raise ValueError(
                f"{type(self.pipe).__name__} is unconditional: pass no prompt, no embeddings and guidance_scale=1"
            )
        labels = prompts.more.get("class_labels")
        return {} if labels is None else {"class_labels": torch.tensor(labels, device=self.device)}, None
