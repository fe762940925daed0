"""Sana: a linear transformer on rectified flow over deeply compressed latents. Xie et al., arXiv 2410.10629."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, ClassVar

import torch

from invfast.adapters import masked
from invfast.adapters.base import Prompts
from invfast.adapters.rectified_flow import RectifiedFlow, form
from invfast.adapters.transformer import ONNX, Timed
from invfast.denoiser import MASK, Condition, Form


class Sana(RectifiedFlow):
    """The condition is Gemma's output under its mask; prompts stand behind the pipeline's own instruction."""

    description = "Sana (a deeply compressing vae, a SanaTransformer2DModel of its latents, a text encoder or none)"
    pipelines = ("SanaPipeline",)
    network = "SanaTransformer2DModel"
    takes: ClassVar[tuple[str, ...]] = ("prompt_attention_mask", "negative_prompt_attention_mask")
    again = takes

    def unfit(self) -> list[str | None]:
        found, config = super().unfit(), self.transformer.config
        if config.get("guidance_embeds"):
            found.append(
                "its network takes guidance as an input, as Sana-Sprint's, whose steps draw noise; load Sana's"
            )
        return found

    @property
    def patch(self) -> int:
        return self.transformer.config.patch_size

    def form(self) -> Form:
        why = "ONNX Runtime's answer for its linear attention was not finite; take 'eager' or 'openvino'"
        return form(self.channels, partial(Timed, ask=_ask), refused=dict.fromkeys(ONNX, why))

    def shifted(self, steps: int, shape: torch.Size) -> dict[str, Any]:
        return {}

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        positive = self._told(len(latents), prompts, prompts.texts, prompts.embeds, "")
        if self.guidance(guidance_scale) <= 1:
            return positive, None
        return positive, self._told(len(latents), prompts, prompts.negative, prompts.negative_embeds, "negative_")

    def _told(
        self, batch: int, prompts: Prompts, said: list[str] | None, embeds: torch.Tensor | None, prefix: str
    ) -> dict[str, torch.Tensor]:
        names = f"{prefix}prompt_embeds", f"{prefix}prompt_attention_mask"
        width, mask = self.transformer.config.caption_channels, prompts.more.get(names[1])
        instruction = None if prefix else inspect.signature(self.pipe.__call__).parameters["complex_human_instruction"]

        def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
            told = {"complex_human_instruction": instruction and instruction.default}
            return self._encode(text, **told)

        return masked.told(self, batch, said, embeds, mask, encode, width, names)

    def _encode(self, said: str, **told: Any) -> tuple[torch.Tensor, torch.Tensor]:
        side = self.pipe.tokenizer.padding_side  # which the pipeline sets, and which is the caller's
        try:
            return self.pipe.encode_prompt(said, False, device=self.device, **told)[:2]
        finally:
            self.pipe.tokenizer.padding_side = side


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    mask = static.pop(MASK, None)
    times = times * network.config.timestep_scale
    out = network(x, timestep=times, encoder_attention_mask=mask, **static, return_dict=False)[0]
    return out[:, : x.shape[1]]  # a variance, where it is learned, is not asked for
