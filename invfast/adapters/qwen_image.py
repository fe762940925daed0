"""Qwen-Image: rectified flow, texts of any length, a video's VAE. Wu et al., arXiv 2508.02324."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch

from invfast.adapters import masked
from invfast.adapters.base import Prompts
from invfast.adapters.rectified_flow import RectifiedFlow, form, packed, unpacked
from invfast.adapters.transformer import EXPORTS, Timed
from invfast.denoiser import MASK, SCALE, Condition, Form


class QwenImage(RectifiedFlow):
    """The condition is the text encoder's output and its mask; `guidance_scale` is the pipeline's true_cfg_scale.

    Latents are (B, 16, h, w), as the VAE has them without its frames; the network sees patches of 2 x 2.
    """

    description = "Qwen-Image (a vae, a QwenImageTransformer2DModel of its latents, a text encoder or none)"
    pipelines = ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline")
    network = "QwenImageTransformer2DModel"
    spaced = True
    takes: ClassVar[tuple[str, ...]] = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    again = takes

    def unfit(self) -> list[str | None]:
        found, config = super().unfit(), self.transformer.config
        if any(config.get(name) for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond")):
            found.append("its network is one of layers, of editing or of distilled guidance; load Qwen-Image's own")
        return found

    @property
    def channels(self) -> int:
        return self.transformer.config.in_channels // 4

    def form(self) -> Form:
        why = "its exports are good for one number of tokens, which cuts its rotations; take 'eager' or 'compile'"
        refused = dict.fromkeys(EXPORTS, why)
        flat = partial(Timed, ask=_ask)
        return form(self.channels, flat, refused=refused, combine=rescaled)

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        positive = self._told(len(latents), prompts, prompts.texts, prompts.embeds, "")
        if self.guidance(guidance_scale) <= 1:
            return positive, None
        negative = self._told(len(latents), prompts, prompts.negative, prompts.negative_embeds, "negative_")
        scale = torch.full((len(latents),), float(guidance_scale), device=self.device, dtype=self.latent_dtype)
        return {**positive, SCALE: scale}, {**negative, SCALE: scale}

    def _told(
        self, batch: int, prompts: Prompts, said: list[str] | None, embeds: torch.Tensor | None, prefix: str
    ) -> dict[str, torch.Tensor]:
        names = f"{prefix}prompt_embeds", f"{prefix}prompt_embeds_mask"
        width = self.transformer.config.joint_attention_dim
        return masked.told(self, batch, said, embeds, prompts.more.get(names[1]), self._encode, width, names)

    def _encode(self, said: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.pipe.encode_prompt(said, device=self.device, max_sequence_length=512)


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    b, _, h, w = x.shape
    out = network(
        hidden_states=packed(x),
        timestep=times.to(x.dtype) / 1000,
        img_shapes=[[(1, h // 2, w // 2)]] * b,
        **{MASK: None, **static},
        return_dict=False,
    )[0]
    return unpacked(out, x)


def rescaled(given: torch.Tensor, without: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance (B, C, h, w) whose tokens, patches of 2 x 2, keep the norm of the conditional ones'."""
    cond, uncond = packed(given.to(scale.dtype)), packed(without.to(scale.dtype))
    both = uncond + scale.reshape(-1, 1, 1) * (cond - uncond)
    norm = torch.linalg.vector_norm
    return unpacked(both * (norm(cond, dim=-1, keepdim=True) / norm(both, dim=-1, keepdim=True)), given)
