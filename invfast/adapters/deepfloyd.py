"""Pixels told by T5's embeddings, as DeepFloyd IF's first stage: after Saharia et al., 2022 (arXiv 2205.11487)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from invfast.adapters import door, texts, unets
from invfast.adapters.base import Prompts
from invfast.adapters.unconditional import Unconditional
from invfast.denoiser import Condition, Form


class DeepFloyd(Unconditional):
    """Pixels in [-1, 1]; the condition is the text encoder's output. Of what the network predicts the mean counts."""

    description = "an IFPipeline (a UNet2DConditionModel of pixels, one text encoder or none)"
    pipelines = ("IFPipeline",)
    takes = ()

    def unfit(self) -> Iterator[str | None]:
        yield from door.unfit(self.pipe.unet, self.channels, (None, "text"))
        yield door.patched(self.pipe)

    def form(self) -> Form:
        why = "OpenVINO 2026.4 crashes where it compiles attention with added keys, as this network has; take 'eager'"
        return replace(super().form(), repeats=False, refused=dict.fromkeys(("openvino", "openvino_gpu"), why))

    def encoders(self) -> dict[str, Any]:
        return {name: getattr(self.pipe, name, None) for name in ("text_encoder", "tokenizer")}

    def guidance(self, scale: float) -> float:
        return unets.guidance(self.pipe.unet, scale)

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        def encode(text: str) -> tuple[torch.Tensor]:
            return self.pipe.encode_prompt(text, False, 1, self.device, clean_caption=True)[:1]

        return texts.conditions(self, len(latents), prompts, guidance_scale, encode)
