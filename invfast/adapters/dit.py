"""Diffusion transformers by class, DiTPipeline: Peebles and Xie, ICCV 2023 (arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from invfast.adapters import labels
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Prompts
from invfast.adapters.transformer import Timed, Transformer
from invfast.denoiser import Condition, Form


class DiT(Transformer):
    """The condition is a class; guidance runs the class of none beside it. Every image has the network's own size."""

    description = "a DiTPipeline (a DiTTransformer2DModel of a vae's latents, class labels)"
    pipelines = ("DiTPipeline",)
    network = "DiTTransformer2DModel"
    takes = ("class_labels",)

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        found, name = super().check(batch, more), type(self.pipe).__name__
        classes = self.transformer.config.num_embeds_ada_norm
        return {"class_labels": labels.checked(found.get("class_labels"), batch, classes, True, name)}

    def form(self) -> Form:
        return Form(self.channels, flat=partial(Timed, ask=_ask))

    def encoders(self) -> dict[str, Any]:
        return {}

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w) of the network's own size, to which images are resized where nothing else is asked.

        Raises:
            ValueError: another size.
        """
        side, vae = self.transformer.config.sample_size, Autoencoder.of(self)
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

    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        self.no_texts(prompts)
        batch, nothing = len(latents), self.transformer.config.num_embeds_ada_norm
        given = prompts.more.get("class_labels", [0] * batch)
        static = {"class_labels": torch.tensor(given, device=self.device)}
        if self.guidance(guidance_scale) <= 1:
            return static, None
        return static, {"class_labels": torch.full((batch,), nothing, device=self.device)}


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    return network(x, timestep=times, **static, return_dict=False)[0][:, : x.shape[1]]  # the mean alone
