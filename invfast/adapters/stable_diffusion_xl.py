"""Stable Diffusion XL: two text encoders, pooled embeddings, sizes as conditions. Podell et al., arXiv 2307.01952."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from invfast import arguments
from invfast.adapters import controlnets, door, steering, texts, unets
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Adapter, Prompts
from invfast.denoiser import EMBEDS, Condition, Form

TEXTS = ("prompt_2", "negative_prompt_2")
SIZES = ("original_size", "crops_coords_top_left", "target_size")
NEGATIVE_SIZES = tuple(f"negative_{name}" for name in SIZES)
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class StableDiffusionXL(Adapter):
    """The condition is both encoders' output side by side, the second's pooled one, and the image's sizes.

    Sizes are (height, width) in pixels, by default the image's own; the crop is at (0, 0).
    """

    description = "Stable Diffusion XL (a vae, a UNet2DConditionModel of its latents, two text encoders or none)"
    pipelines = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
    )
    takes: ClassVar[tuple[str, ...]] = (*TEXTS, *POOLED, *SIZES, *NEGATIVE_SIZES, *steering.TAKES)
    again: ClassVar[tuple[str, ...]] = (*POOLED, *steering.IMAGES)

    def unfit(self) -> Iterator[str | None]:
        unet, encoder = self.pipe.unet, self.pipe.text_encoder_2
        found = list(door.unfit(unet, door.channels(self.pipe), ("text_time",), images=True))
        yield from (*(found or controlnets.unfit(self.pipe)), door.patched(self.pipe))
        if found:
            return
        if self.pipe.config.get("requires_aesthetics_score"):
            yield "it is the refiner, which takes over in the middle of a grid and is told a score; load the base model"
        elif encoder is not None:
            width = encoder.config.projection_dim
            if width != self._pooled_width():
                yield f"its second text encoder pools to {width} numbers, its network takes {self._pooled_width()}"

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": controlnets.network(self.pipe), "vae": self.pipe.vae}

    def form(self) -> Form:
        return controlnets.form(self.pipe)

    def encoders(self) -> dict[str, Any]:
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        return {name: getattr(self.pipe, name, None) for name in names}

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        found = steering.check(self.pipe, super().check(batch, more))
        for name, value in found.items():
            if name in TEXTS:
                found[name] = arguments.each(value, batch, name)
            elif name in (*SIZES, *NEGATIVE_SIZES):
                found[name] = arguments.pair(name, value)
        lone = [name for name in NEGATIVE_SIZES[::2] if name in found]
        if len(lone) == 1:
            raise ValueError("negative_original_size and negative_target_size go together; pass both or neither")
        return found

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        latents = self.latents_of(image, height, width)
        return Autoencoder.of(self).encode(image, height, width) if latents is None else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return Autoencoder.of(self).decode(latents)

    def guidance(self, scale: float) -> float:
        return unets.guidance(self.pipe.unet, scale)

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        return steering.steered(self, latents, prompts.more, self._told(latents, prompts, guidance_scale))

    def _told(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        """Texts and sizes."""
        batch, more = len(latents), prompts.more
        own = [side * self.pipe.vae_scale_factor for side in latents.shape[2:]]
        sizes = [more.get(name, (0, 0) if "crops" in name else own) for name in SIZES]
        shown = self._shown(batch, prompts.texts, prompts.embeds, more, "")
        static = {**shown, "time_ids": self._sizes(batch, sizes)}
        if self.guidance(guidance_scale) <= 1:
            return {**static, **unets.guided(self.pipe, batch, guidance_scale, self.device)}, None
        nothing = all(each is None for each in (prompts.negative, prompts.negative_embeds, more.get(POOLED[1])))
        if nothing and self.pipe.config.force_zeros_for_empty_prompt:
            shown = {name: torch.zeros_like(value) for name, value in shown.items()}
        else:
            shown = self._shown(batch, prompts.negative, prompts.negative_embeds, more, "negative_")
        if "negative_original_size" in more:  # else the crop does not count either, as in diffusers
            sizes = [more.get(name, (0, 0)) for name in NEGATIVE_SIZES]
        return static, {**shown, "time_ids": self._sizes(batch, sizes)}

    def _shown(
        self, batch: int, said: list[str] | None, embeds: torch.Tensor | None, more: Mapping[str, Any], prefix: str
    ) -> dict[str, torch.Tensor]:
        """What one branch is shown of a text: embeddings (B, tokens, width) and pooled ones (B, width)."""
        widths = unets.text_width(self.pipe.unet) or "width", self._pooled_width()
        rows, of_second = texts.pooled(self, batch, said, embeds, more, self._encode, widths, prefix)
        return {EMBEDS: rows, "text_embeds": of_second}

    def _encode(self, pair: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        said, second = pair
        found = self.pipe.encode_prompt(said, second, self.device, 1, False)
        return found[0], found[2]

    def _sizes(self, batch: int, sizes: Sequence[Sequence[int]]) -> torch.Tensor:
        numbers = [float(number) for pair in sizes for number in pair]
        return torch.tensor([numbers], device=self.device).expand(batch, -1)

    def _pooled_width(self) -> int:
        unet = self.pipe.unet
        return unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
