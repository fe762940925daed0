"""PixArt-alpha and -sigma: Chen et al., arXiv 2310.00426 and 2403.04692. A transformer on a diffusion's betas."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch

from invfast import flows
from invfast.adapters import masked
from invfast.adapters.base import Prompts
from invfast.adapters.transformer import ONNX, Timed, Transformer
from invfast.denoiser import MASK, Condition, Form

SIZES = ("resolution", "aspect_ratio")


class PixArt(Transformer):
    """The condition is T5's output under its mask and, where the network takes it, the image's size."""

    description = "PixArt-alpha or -sigma (a vae, a PixArtTransformer2DModel of its latents, a text encoder or none)"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    network = "PixArtTransformer2DModel"
    takes: ClassVar[tuple[str, ...]] = ("prompt_attention_mask", "negative_prompt_attention_mask")
    again = takes

    def unfit(self) -> list[str | None]:
        found, scheduler = super().unfit(), self.pipe.scheduler
        if flows.is_flow(scheduler):
            found.append(f"its scheduler {type(scheduler).__name__} is of rectified flow; use DDIMScheduler")
        return found

    @property
    def patch(self) -> int:
        return self.transformer.config.patch_size

    def form(self) -> Form:
        why = "its network squeezes an axis that is longer than 1, which ONNX refuses; take 'eager' or 'openvino'"
        return Form(self.channels, flat=partial(Timed, ask=_ask), refused=dict.fromkeys(ONNX, why))

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        positive = self._told(latents, prompts, prompts.texts, prompts.embeds, "")
        if self.guidance(guidance_scale) <= 1:
            return positive, None
        return positive, self._told(latents, prompts, prompts.negative, prompts.negative_embeds, "negative_")

    def _told(
        self, latents: torch.Tensor, prompts: Prompts, said: list[str] | None, embeds: torch.Tensor | None, prefix: str
    ) -> dict[str, torch.Tensor]:
        names = f"{prefix}prompt_embeds", f"{prefix}prompt_attention_mask"
        width, mask, batch = self.transformer.config.caption_channels, prompts.more.get(names[1]), len(latents)
        static = masked.told(self, batch, said, embeds, mask, self._encode, width, names)
        if not self.transformer.use_additional_conditions:
            return static
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[2:])
        sizes = (
            torch.tensor([[height, width]], device=self.device),
            torch.tensor([[height / width]], device=self.device),
        )
        return {**static, **{name: each.float().expand(batch, -1) for name, each in zip(SIZES, sizes, strict=True)}}

    def _encode(self, said: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pipe.encode_prompt(said, False, device=self.device, clean_caption=True)[:2]


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    mask, sizes = static.pop(MASK, None), {name: static.pop(name, None) for name in SIZES}
    out = network(x, timestep=times, encoder_attention_mask=mask, added_cond_kwargs=sizes, **static, return_dict=False)[
        0
    ]
    return out[:, : x.shape[1]]  # the mean alone
