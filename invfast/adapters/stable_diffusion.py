"""Stable Diffusion 1.x and 2.x: an AutoencoderKL, one text encoder, a UNet2DConditionModel."""

from __future__ import annotations

from typing import Any

import torch

from invfast import images
from invfast.adapters.base import Adapter, Condition, Prompts
from invfast.adapters.clone import private
from invfast.adapters.conditioned import EMBEDS
from invfast.locks import lock_of
from invfast.store import beside

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StableDiffusion(Adapter):
    """Latents are the VAE's posterior mean times its scaling factor; the condition is the text encoder's output."""

    description = (
        "Stable Diffusion 1.x or 2.x (a vae and a UNet2DConditionModel of its latents, one text encoder or none)"
    )

    @staticmethod
    def supports(pipe: Any) -> bool:
        parts = ("unet", "vae", "scheduler", "encode_prompt")
        if any(getattr(pipe, part, None) is None for part in parts) or hasattr(pipe, "text_encoder_2"):
            return False
        config = pipe.unet.config
        return "cross_attention_dim" in config and config.in_channels == pipe.vae.config.latent_channels

    def parts(self) -> dict[str, torch.nn.Module]:
        return {**super().parts(), "vae": self.pipe.vae}

    @torch.no_grad()
    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w): the posterior mean times the scaling factor; latents pass through, checked.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        latents = self.latents_of(image, height, width)
        if latents is not None:
            return latents
        vae, dtype = self._vae()
        pixels = images.to_pixels(image, self.pipe.vae_scale_factor, height, width)
        # Each alone: rounding would differ with the batch, and a batch of large images takes gigabytes.
        x = torch.cat([vae.encode(each).latent_dist.mode() for each in pixels.to(self.device, dtype).split(1)])
        _check_finite(x, "encoding")
        return (x.to(self.latent_dtype) - self._shift()) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        vae, dtype = self._vae()
        x = latents / vae.config.scaling_factor + self._shift()
        pixels = torch.cat([vae.decode(each, return_dict=False)[0] for each in x.to(dtype).split(1)])
        _check_finite(pixels, "decoding")
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def guidance(self, scale: float) -> float:
        """The scale as far as it runs a second branch: 1 where it is below, or an input of the network itself (LCM)."""
        distilled = self.pipe.unet.config.time_cond_proj_dim is not None
        return scale if scale > 1 and not distilled else 1.0

    @torch.no_grad()
    def condition(self, batch: int, prompts: Prompts, guidance_scale: float) -> Condition:
        static = {EMBEDS: self._embed(batch, prompts.texts, prompts.embeds, "prompt_embeds")}
        width = self.pipe.unet.config.time_cond_proj_dim
        if width is not None:
            scale = torch.tensor(guidance_scale - 1, device=self.device).repeat(batch)
            static["timestep_cond"] = self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width)
        if self.guidance(guidance_scale) <= 1:
            return static, None
        texts = [""] * batch if prompts.negative is None else prompts.negative
        embeds = self._embed(batch, texts, prompts.negative_embeds, "negative_prompt_embeds")
        return static, {EMBEDS: embeds}

    def _embed(self, batch: int, texts: list[str] | None, embeds: torch.Tensor | None, name: str) -> torch.Tensor:
        """(B, tokens, width); each distinct text is encoded once and alone, so that no image depends on its batch."""
        if embeds is not None:
            self._check_embeds(embeds, batch, name)
            # A copy: what the result keeps must not change with what the caller does to it.
            rows = embeds.detach().to(self.device, copy=True)
            return rows.expand(batch, *rows.shape[1:])
        missing = [part for part in ("text_encoder", "tokenizer") if getattr(self.pipe, part, None) is None]
        if missing:
            text = name.removesuffix("_embeds")
            raise ValueError(
                f"{text} {texts[0]!r} cannot be encoded: the pipeline has no {' and no '.join(missing)}; pass {name}, "
                f"(1 or {batch}, tokens, {self._width()}), or load the pipeline with what is missing"
            )
        with lock_of(self.pipe.tokenizer):  # a call of it sets how it pads and truncates
            found = {text: self.pipe.encode_prompt(text, self.device, 1, False)[0] for text in dict.fromkeys(texts)}
        return torch.cat([found[text] for text in texts])

    def _width(self) -> int | None:
        """Of the embeddings the network takes, None where its layers want several."""
        config = self.pipe.unet.config
        given = config.get("encoder_hid_dim") or config.cross_attention_dim
        widths = {given} if isinstance(given, int) else set(given)
        return widths.pop() if len(widths) == 1 else None

    def _check_embeds(self, embeds: Any, batch: int, name: str) -> None:
        width, rows = self._width(), "1" if batch == 1 else f"1 or {batch}"
        shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else None
        if (
            shape is None
            or len(shape) != 3
            or shape[0] not in (1, batch)
            or not shape[1]
            or width not in (None, shape[2])
        ):
            got = type(embeds).__name__ if shape is None else shape
            raise ValueError(f"{name} must be a tensor of shape ({rows}, tokens, {width or 'width'}), got {got}")
        if embeds.dtype not in FLOATS or embeds.layout != torch.strided or embeds.is_meta:
            raise ValueError(
                f"{name} must be a dense tensor of floats with values, got {embeds.dtype}, {embeds.layout}, on "
                f"{embeds.device}"
            )
        if not bool(embeds.isfinite().all()):
            raise ValueError(f"{name} has non-finite values")

    def _vae(self) -> tuple[torch.nn.Module, torch.dtype]:
        """The VAE and the dtype it computes in: its own, but float32 for a float16 one that overflows or is on a CPU.

        Under hooks, or quantised, it stays what it is.
        """
        vae, read = self.pipe.vae, self.read["vae"]
        if read.as_it_is:
            return vae, read.dtype
        half = read.dtype == torch.float16 and (self.device.type == "cpu" or vae.config.force_upcast)
        dtype, layout = torch.float32 if half else read.dtype, self.runtime.memory_format(self.device)
        return read.keep(
            ("vae", dtype, layout), lambda: private(vae, dtype, layout), lambda made: beside(made, read.addresses)
        ), dtype

    def _shift(self) -> float:
        return self.pipe.vae.config.get("shift_factor") or 0.0


def _check_finite(x: torch.Tensor, doing: str) -> None:
    """Raises FloatingPointError where the VAE left its range."""
    bad = [str(j + 1) for j, ok in enumerate(x.isfinite().flatten(1).all(1).tolist()) if not ok]
    if bad:
        raise FloatingPointError(
            f"the VAE's output became non-finite {doing} image {', '.join(bad[:8])} of {len(x)}, dtype "
            f"{str(x.dtype).removeprefix('torch.')}; load the VAE in float32, or set its config's force_upcast"
        )
