"""Stable Diffusion 1.x and 2.x: an AutoencoderKL, one text encoder, a UNet2DConditionModel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from invfast import images, runtimes
from invfast.adapters.clone import is_managed, own_dtype, private
from invfast.adapters.predictor import Predictor

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
_MISSING = object()

Condition = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]
"""The network's static inputs by name, (B, ...) each, and the unconditional ones under guidance."""


class StableDiffusion:
    """One pipeline for the time of one call. The pipeline is read, never written.

    Args:
        pipe: the diffusers pipeline.
        runtime: runtime name.
        dtype: the network's dtype or its name; None keeps the pipeline's, but float32 for float16 on a CPU.

    Raises:
        ValueError: unknown runtime or dtype. RuntimeError: the runtime cannot run here.
    """

    description = "Stable Diffusion 1.x or 2.x (vae, text_encoder, tokenizer and a UNet2DConditionModel of VAE latents)"

    def __init__(self, pipe: Any, runtime: str = "auto", dtype: torch.dtype | str | None = None) -> None:
        self.pipe = pipe
        self.device = torch.device(pipe._execution_device)
        self.dtype = _network_dtype(dtype, pipe.unet, self.device)
        self.latent_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.runtime = runtimes.resolve(runtime)

    @staticmethod
    def supports(pipe: Any) -> bool:
        parts = ("unet", "vae", "scheduler", "tokenizer", "encode_prompt")
        if any(getattr(pipe, part, None) is None for part in parts) or hasattr(pipe, "text_encoder_2"):
            return False
        config = pipe.unet.config
        return "cross_attention_dim" in config and config.in_channels == pipe.vae.config.latent_channels

    @contextmanager
    def session(self) -> Iterator[StableDiffusion]:
        """Leaves the pipeline as it was: interrupt flag, progress-bar settings, offloading."""
        names = ("_interrupt", "_progress_bar_config")
        before = {name: self.pipe.__dict__.get(name, _MISSING) for name in names}
        self.pipe._interrupt = False  # as diffusers does at the start of a call
        try:
            yield self
        finally:
            for name, value in before.items():
                if value is _MISSING:
                    self.pipe.__dict__.pop(name, None)
                else:
                    setattr(self.pipe, name, value)
            self.pipe.maybe_free_model_hooks()

    @property
    def interrupted(self) -> bool:
        return bool(self.pipe._interrupt)

    @torch.inference_mode()
    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w): the posterior mean times the scaling factor; latents pass through, checked.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        channels = self.pipe.unet.config.in_channels
        if isinstance(image, torch.Tensor) and image.ndim == 4 and image.shape[1] == channels:
            x = image.detach()
            if height is not None or width is not None:
                raise ValueError("height and width resize images; latents keep their size, pass neither")
            if x.numel() == 0 or not x.is_floating_point() or not bool(x.isfinite().all()):
                raise ValueError(
                    f"latents must be finite floats of shape (B, {channels}, h, w), got {x.dtype} {tuple(x.shape)}"
                    + (" with non-finite values" if x.is_floating_point() and x.numel() else "")
                )
            return x.to(self.device, self.latent_dtype)
        vae = self._vae()
        pixels = images.to_pixels(image, self.pipe.vae_scale_factor, height, width)
        x = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        _check_finite(x, "encoding")
        return (x.to(self.latent_dtype) - self._shift()) * vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        vae = self._vae()
        x = latents / vae.config.scaling_factor + self._shift()
        pixels = vae.decode(x.to(vae.dtype), return_dict=False)[0]
        _check_finite(pixels, "decoding")
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def guidance(self, scale: float) -> float:
        """The scale as far as it runs a second branch: 1 where it is below, or an input of the network itself (LCM)."""
        distilled = self.pipe.unet.config.time_cond_proj_dim is not None
        return scale if scale > 1 and not distilled else 1.0

    @torch.inference_mode()
    def condition(
        self,
        batch: int,
        prompt: list[str] | None,
        negative_prompt: list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        guidance_scale: float,
    ) -> Condition:
        """The network's static inputs for `batch` images, and the unconditional ones under guidance.

        Texts are one an image; embeddings (1 or B, tokens, width) replace them.
        """
        static = {"encoder_hidden_states": self._embed(batch, prompt, prompt_embeds, "prompt_embeds")}
        width = self.pipe.unet.config.time_cond_proj_dim
        if width is not None:
            scale = torch.tensor(guidance_scale - 1, device=self.device).repeat(batch)
            static["timestep_cond"] = self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width)
        if self.guidance(guidance_scale) <= 1:
            return static, None
        texts = [""] * batch if negative_prompt is None else negative_prompt
        return static, {
            "encoder_hidden_states": self._embed(batch, texts, negative_prompt_embeds, "negative_prompt_embeds")
        }

    def predictor(
        self, x: torch.Tensor, condition: dict[str, torch.Tensor], negative: dict[str, torch.Tensor] | None
    ) -> Predictor:
        """The network on this runtime, bound to its condition."""
        branches = 1 if negative is None else 2
        static = {
            name: (value if negative is None else torch.cat([value, negative[name]])).to(self.dtype)
            for name, value in condition.items()
        }
        module = private(self.pipe.unet, self.dtype, self.runtime.memory_format(self.device))
        example = {"x": torch.cat([x] * branches).to(self.dtype), "t": torch.tensor(0, device=self.device), **static}
        network = self.runtime.prepare(module, example, runtimes.Spec(device=self.device, dtype=self.dtype))
        return Predictor(network, static, branches, self.dtype, self.runtime.dynamic_batch)

    def _embed(self, batch: int, texts: list[str] | None, embeds: torch.Tensor | None, name: str) -> torch.Tensor:
        """(B, tokens, width); equal texts are encoded once."""
        if embeds is not None:
            self._check_embeds(embeds, batch, name)
        unique = None if embeds is not None else list(dict.fromkeys(texts))
        rows, _ = self.pipe.encode_prompt(unique, self.device, 1, False, prompt_embeds=embeds)
        if unique is not None and len(unique) > 1:
            return rows[[unique.index(text) for text in texts]]
        return rows.expand(batch, *rows.shape[1:])

    def _check_embeds(self, embeds: torch.Tensor, batch: int, name: str) -> None:
        width = self.pipe.unet.config.cross_attention_dim
        shape = tuple(getattr(embeds, "shape", ()))
        if len(shape) != 3 or shape[0] not in (1, batch) or (isinstance(width, int) and shape[2] != width):
            rows = "1" if batch == 1 else f"1 or {batch}"
            raise ValueError(f"{name} must be a tensor of shape ({rows}, tokens, {width}), got {shape or type(embeds)}")
        if not bool(embeds.isfinite().all()):
            raise ValueError(f"{name} has non-finite values")

    def _vae(self) -> torch.nn.Module:
        """The VAE in its own dtype, but float32 for a float16 one that overflows or sits on a CPU.

        Under hooks it stays what it is: they place and cast it.
        """
        vae = self.pipe.vae
        if is_managed(vae):
            return vae
        half = vae.dtype == torch.float16 and (self.device.type == "cpu" or vae.config.force_upcast)
        return private(vae, torch.float32 if half else vae.dtype, self.runtime.memory_format(self.device))

    def _shift(self) -> float:
        return self.pipe.vae.config.get("shift_factor") or 0.0


def _network_dtype(asked: torch.dtype | str | None, module: torch.nn.Module, device: torch.device) -> torch.dtype:
    slow = device.type == "cpu"
    if asked is None:
        own = own_dtype(module)
        return torch.float32 if own == torch.float16 and slow and not is_managed(module) else own
    dtype = DTYPES.get(asked) if isinstance(asked, str) else asked
    if dtype not in DTYPES.values():
        raise ValueError(f"unknown dtype {asked!r}; expected one of {', '.join(DTYPES)}")
    if dtype == torch.float16 and slow:
        warnings.warn("float16 on a CPU is slow and overflows easily; prefer float32 or bfloat16", stacklevel=4)
    return dtype


def _check_finite(x: torch.Tensor, doing: str) -> None:
    bad = [str(j + 1) for j, ok in enumerate(x.isfinite().flatten(1).all(1).tolist()) if not ok]
    if bad:
        raise FloatingPointError(
            f"the VAE's output became non-finite {doing} image {', '.join(bad[:8])} of {len(x)}, dtype "
            f"{str(x.dtype).removeprefix('torch.')}; load the VAE in float32, or set its config's force_upcast"
        )
