"""Stable Diffusion 3 and 3.5: a transformer on rectified flow, three text encoders. Esser et al., arXiv 2403.03206."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch

from invfast.adapters import texts
from invfast.adapters.base import Prompts
from invfast.adapters.rectified_flow import POOLED, RectifiedFlow, form
from invfast.adapters.transformer import Timed
from invfast.denoiser import EMBEDS, Condition, Form


class StableDiffusion3(RectifiedFlow):
    """The condition is the text encoders' output side by side and the first two's pooled one."""

    description = "Stable Diffusion 3 or 3.5 (a vae, an SD3Transformer2DModel of its latents, text encoders or none)"
    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    network = "SD3Transformer2DModel"
    longest = 1.16
    second_texts = ("prompt_2", "prompt_3")
    takes: ClassVar[tuple[str, ...]] = (
        *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
        *POOLED,
    )
    again = POOLED

    @property
    def patch(self) -> int:
        return self.transformer.config.patch_size

    def form(self) -> Form:
        return form(self.channels, partial(Timed, ask=_ask))

    def encoders(self) -> dict[str, Any]:
        # Without the third, T5, the pipeline puts zeros where its output belongs.
        names = [f"{part}{suffix}" for suffix in ("", "_2") for part in ("text_encoder", "tokenizer")]
        if self.pipe.text_encoder_3 is not None:
            names.append("tokenizer_3")
        return {name: getattr(self.pipe, name, None) for name in names}

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        latents, most = super().encode(image, height, width), self.transformer.config.pos_embed_max_size
        if max(latents.shape[2:]) > most * self.patch:
            raise ValueError(
                f"this network has positions for latents of at most {most * self.patch} a side, got "
                f"{tuple(latents.shape)}; pass height and width"
            )
        return latents

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        given = len(latents), prompts.more
        positive = self._told(*given, prompts.texts, prompts.embeds, "")
        if self.guidance(guidance_scale) <= 1:
            return positive, None
        return positive, self._told(*given, prompts.negative, prompts.negative_embeds, "negative_")

    def _told(
        self, batch: int, more: Mapping[str, Any], said: list[str] | None, embeds: torch.Tensor | None, prefix: str
    ) -> dict[str, torch.Tensor]:
        config = self.transformer.config
        widths = config.joint_attention_dim, config.pooled_projection_dim
        rows = texts.pooled(self, batch, said, embeds, more, self._encode, widths, prefix, self.second_texts)
        return dict(zip((EMBEDS, "pooled_projections"), rows, strict=True))

    def _encode(self, said: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.pipe.encode_prompt(*said, device=self.device, do_classifier_free_guidance=False)
        return found[0], found[2]


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    return network(hidden_states=x, timestep=times, **static, return_dict=False)[0]
