"""Diffusion transformers by class, DiTPipeline: Peebles and Xie, ICCV 2023 (arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel

from invfast.adapters import door, labels
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Adapter, Prompts
from invfast.denoiser import Condition, Form


class DiT(Adapter):
    """The condition is a class; guidance runs the class of none beside it. Every image has the network's own size."""

    description = "a DiTPipeline (a DiTTransformer2DModel of a vae's latents, class labels)"
    pipelines = ("DiTPipeline",)
    takes = ("class_labels",)

    def unfit(self) -> Iterator[str]:
        network = self.pipe.transformer
        if not isinstance(getattr(network, "_orig_mod", network), DiTTransformer2DModel):
            yield f"its transformer is a {type(network).__name__}; use a DiTTransformer2DModel"
        elif network.config.in_channels != door.channels(self.pipe):
            own, latents = network.config.in_channels, door.channels(self.pipe)
            yield f"its network takes {own} channels and its latents have {latents}; load the parts of one model"

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        found, name = super().check(batch, more), type(self.pipe).__name__
        classes = self.pipe.transformer.config.num_embeds_ada_norm
        return {"class_labels": labels.checked(found.get("class_labels"), batch, classes, True, name)}

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": self.pipe.transformer, "vae": self.pipe.vae}

    def form(self) -> Form:
        return Form(self.pipe.transformer.config.in_channels, flat=Flat)

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w) of the network's own size, to which images are resized where nothing else is asked.

        Raises:
            ValueError: another size.
        """
        side, vae = self.pipe.transformer.config.sample_size, Autoencoder.of(self)
        latents = self.latents_of(image, height, width)
        if latents is None:
            own = side * vae.factor
            latents = vae.encode(image, own if height is None else height, own if width is None else width)
        if latents.shape[2:] != (side, side):
            raise ValueError(
                f"this network has positions for {side} x {side} latents, got {tuple(latents.shape)}; pass images "
                f"without height and width, or latents of that size"
            )
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return Autoencoder.of(self).decode(latents)

    def guidance(self, scale: float) -> float:
        return scale if scale > 1 else 1.0

    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        self.no_texts(prompts)
        batch, nothing = len(latents), self.pipe.transformer.config.num_embeds_ada_norm
        given = prompts.more.get("class_labels", [0] * batch)
        static = {"class_labels": torch.tensor(given, device=self.device)}
        if self.guidance(guidance_scale) <= 1:
            return static, None
        return static, {"class_labels": torch.full((batch,), nothing, device=self.device)}


class Flat(torch.nn.Module):
    """A private transformer, called like a UNet: one time for all rows, no variance."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.channels = network, network.config.in_channels

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        times = t.reshape(-1).expand(x.shape[0])
        found = self.network(x, timestep=times, class_labels=class_labels, return_dict=False)[0]
        return (found[:, : self.channels],)
