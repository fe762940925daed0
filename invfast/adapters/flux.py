"""FLUX.1: a transformer on rectified flow, its guidance an input (dev) or none (schnell). Black Forest Labs, 2024."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from invfast.adapters import texts
from invfast.adapters.base import Prompts
from invfast.adapters.rectified_flow import POOLED, RectifiedFlow, form, packed, unpacked
from invfast.adapters.transformer import Timed
from invfast.denoiser import EMBEDS, SCALE, Condition, Form


class Flux(RectifiedFlow):
    """The condition is T5's output, CLIP's pooled one, and, where the network takes it, the guidance scale.

    Latents are (B, 16, h, w), as the VAE has them; the network sees patches of 2 x 2.
    """

    description = "FLUX.1 (a vae, a FluxTransformer2DModel of its latents, two text encoders or none)"
    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    network = "FluxTransformer2DModel"
    second_texts = ("prompt_2",)
    takes: ClassVar[tuple[str, ...]] = ("prompt_2", *POOLED[:1])
    again = POOLED[:1]

    @property
    def spaced(self) -> bool:
        return not self.pipe.scheduler.config.get("use_flow_sigmas")

    @property
    def channels(self) -> int:
        return self.transformer.config.in_channels // 4

    def form(self) -> Form:
        return form(self.channels, partial(Timed, ask=_ask))

    def encoders(self) -> dict[str, Any]:
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        return {name: getattr(self.pipe, name, None) for name in names}

    def guidance(self, scale: float) -> float:
        """No second branch: the scale is an input, or nothing."""
        return 1.0

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        batch, config = len(latents), self.transformer.config
        widths = config.joint_attention_dim, config.pooled_projection_dim
        rows = texts.pooled(self, batch, prompts.texts, prompts.embeds, prompts.more, self._encode, widths)
        static = dict(zip((EMBEDS, "pooled_projections"), rows, strict=True))
        if config.guidance_embeds:
            static[SCALE] = torch.full((batch,), float(guidance_scale), device=self.device)
        return static, None

    def _encode(self, said: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pipe.encode_prompt(*said, device=self.device)[:2]


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    h, w = (side // 2 for side in x.shape[2:])
    rows = torch.arange(h, device=x.device).reshape(h, 1).expand(h, w)
    columns = torch.arange(w, device=x.device).expand(h, w)
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(h * w, 3).to(x.dtype)
    nowhere = places.new_zeros(static[EMBEDS].shape[1], 3)
    out = network(
        hidden_states=packed(x),
        timestep=times.to(x.dtype) / 1000,
        txt_ids=nowhere,
        img_ids=places,
        **static,
        return_dict=False,
    )[0]
    return unpacked(out, x)
