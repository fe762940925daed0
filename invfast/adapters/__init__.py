"""What is particular to a family of pipelines: its parts, how images become latents and texts the network's inputs."""

from __future__ import annotations

from typing import Any

from invfast.adapters import door
from invfast.adapters.base import Adapter, Prompts
from invfast.adapters.decoder_inversion import DecoderInversion
from invfast.adapters.deepfloyd import DeepFloyd
from invfast.adapters.dit import DiT
from invfast.adapters.flux import Flux
from invfast.adapters.latent_diffusion import LatentDiffusion
from invfast.adapters.pixart import PixArt
from invfast.adapters.qwen_image import QwenImage
from invfast.adapters.sana import Sana
from invfast.adapters.stable_diffusion import StableDiffusion
from invfast.adapters.stable_diffusion_3 import StableDiffusion3
from invfast.adapters.stable_diffusion_xl import StableDiffusionXL
from invfast.adapters.unconditional import Unconditional
from invfast.adapters.z_image import ZImage

ADAPTERS: tuple[type[Adapter], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    Unconditional,
    LatentDiffusion,
    DeepFloyd,
    DiT,
    StableDiffusion3,
    Flux,
    QwenImage,
    ZImage,
    Sana,
    PixArt,
)


def resolve(pipe: Any) -> type[Adapter]:
    """The adapter of a pipeline, by its class.

    Raises:
        TypeError: it is of no family's; says what can be done.
    """
    own = door.kinds(pipe)
    for adapter in ADAPTERS:
        if own & set(adapter.pipelines):
            return adapter
    raise TypeError(door.foreign(pipe, {each.pipelines[0]: each.description for each in ADAPTERS}))


__all__ = [
    "ADAPTERS",
    "Adapter",
    "DecoderInversion",
    "Prompts",
    "StableDiffusion",
    "StableDiffusionXL",
    "Unconditional",
    "resolve",
]
