"""The networks that are timed: true architectures with random weights, for speed does not depend on weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from invfast import demo
from invfast.adapters import unets

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


@dataclass(frozen=True)
class Case:
    """A network at a size.

    Args:
        network: makes it, float32, in eval mode.
        latent: side of the latents.
        tokens: of the prompt, and their width.
        added: further inputs by name, (B, ...) without the batch.
    """

    network: Callable[[], torch.nn.Module]
    latent: int
    tokens: tuple[int, int]
    added: dict[str, tuple[int, ...]]

    def inputs(self, batch: int = 1) -> dict[str, torch.Tensor]:
        """What the network is called with: x, t and the static inputs."""
        g = torch.Generator().manual_seed(0)
        shapes = {"x": (4, self.latent, self.latent), "encoder_hidden_states": self.tokens, **self.added}
        drawn = {name: torch.randn(batch, *shape, generator=g) for name, shape in shapes.items()}
        return {"x": drawn.pop("x"), "t": torch.tensor(501), **drawn}


def _random(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


def sd15() -> torch.nn.Module:
    """Stable Diffusion 1.5's UNet: 860 M parameters."""
    return _random(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8))


def sdxl() -> torch.nn.Module:
    """SDXL's UNet as `invert` gives it to runtimes: its added conditions are inputs."""
    unet = sdxl_unet()
    return unets.form(unet).flat(unet)


def sdxl_unet() -> torch.nn.Module:
    """SDXL's UNet: 2.6 billion parameters."""
    return _random(
        lambda: UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    )


class Encode(torch.nn.Module):
    """A VAE's way in: pixels in [-1, 1] (B, 3, H, W) -> the posterior's mean (B, 4, h, w)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(x, return_dict=False)[0].mode()


class Decode(Encode):
    """And out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(x, return_dict=False)[0]


def sd15_vae() -> AutoencoderKL:
    """Stable Diffusion 1.5's autoencoder: 84 M parameters."""
    channels = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return _random(lambda: AutoencoderKL(block_out_channels=channels, layers_per_block=2, latent_channels=4, **blocks))


def sd15_pipeline(device: str | torch.device = "cpu") -> StableDiffusionPipeline:
    """SD1.5's shapes as a pipeline, random weights drawn where they are to lie, for whole calls of `invert`.

    Its text encoder has one layer of the twelve.
    """
    tokenizer = demo.load_pipeline().tokenizer
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=1, num_attention_heads=12)
    with torch.device(device):
        vae, text_encoder, unet = sd15_vae(), _random(lambda: CLIPTextModel(text)), sd15()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl_pipeline() -> StableDiffusionXLPipeline:
    """SDXL's shapes as a pipeline, random weights, for whole calls of `invert`. Each text encoder has one layer."""
    tokenizer = demo.load_pipeline().tokenizer
    first, second = (
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            projection_dim=width,
            num_hidden_layers=1,
            num_attention_heads=heads,
        )
        for width, heads in ((768, 12), (1280, 20))
    )
    pipe = StableDiffusionXLPipeline(
        vae=sd15_vae(),
        text_encoder=_random(lambda: CLIPTextModel(first)),
        text_encoder_2=_random(lambda: CLIPTextModelWithProjection(second)),
        tokenizer=tokenizer,
        tokenizer_2=demo.load_pipeline().tokenizer,
        unet=sdxl_unet(),
        scheduler=DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SDXL_ADDED = {"text_embeds": (1280,), "time_ids": (6,)}
CASES = {
    "bundled 64 px": Case(lambda: demo.load_pipeline().unet.eval(), 16, (12, 128), {}),
    "SD1.5 256 px": Case(sd15, 32, (77, 768), {}),
    "SD1.5 512 px": Case(sd15, 64, (77, 768), {}),
    "SDXL 256 px": Case(sdxl, 32, (77, 2048), SDXL_ADDED),
}
SDXL_1024 = Case(sdxl, 128, (77, 2048), SDXL_ADDED)
"""For a GPU: on a CPU it takes minutes."""
VAE = {f"SD1.5's VAE, {part.__name__.lower()} 256 px": (part, 256) for part in (Encode, Decode)}
"""Halves of an autoencoder, and the images' side."""
