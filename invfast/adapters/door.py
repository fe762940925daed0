"""Which pipelines come in: those of diffusers' classes that are named here, by parts that nothing here would ignore.

What a network needs beside latents, time and text, and what would make it depend on earlier steps, is refused before
anything is run. Silence would give noise that the pipeline itself does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin

from invfast.adapters import image_prompts, unets

PAST = ("faster_cache", "pyramid_attention", "fbc_", "mag_cache", "sea_cache", "taylorseer", "DeepCache", "deepcache")
"""How names of hooks begin that reuse what earlier steps computed."""
ADDITIONS = {
    "controlnet": "a ControlNet",
    "adapter": "a T2I-Adapter",
    "motion_adapter": "a motion module",
    "image_normalizer": "an unCLIP prior's image embeddings",
    "depth_estimator": "depth maps as further channels",
    "semantic_guidance": "semantic guidance",
}
"""Components that steer a network from outside, by the names of their parts in diffusers' pipelines."""

MISSING = {
    "AuraFlow": "a text whose padding counts, as embeddings of zeros",
    "Chroma": "a text under a mask that leaves in one token of the padding",
    "CogView4": "a network that is told sizes and crops, and embeddings filled up to multiples of 16 tokens",
    "Flux2": "latents of patches normalised by a VAE's running mean, and a text of several layers of its encoder",
    "FluxControl": "a control image or ControlNet beside the noise",
    "FluxFill": "the masked image and its mask as further channels",
    "FluxKontext": "a second image that the network reads beside the noise",
    "FluxPriorRedux": "it makes embeddings, not images; pass them to a FluxPipeline",
    "HiDream": "four text encoders, and a network that is told two kinds of embeddings",
    "Lumina2": "guidance that is rescaled by a norm and ends on the way, at times that run backwards",
    "QwenImage21": "its own VAE and network",
    "QwenImageControlNet": "a ControlNet",
    "QwenImageEdit": "a second image that network and text encoder read beside the noise",
    "QwenImageLayered": "several layers of one image at once",
    "SanaControlNet": "a ControlNet",
    "SanaSprint": "steps that draw noise, which no inversion can undo",
    "SanaVideo": "frames",
    "StableDiffusion3ControlNet": "a ControlNet",
    "ZImageControlNet": "a ControlNet",
    "ZImageOmni": "further images that the network reads beside the noise",
}
"""What of a flow or transformer pipeline has no place here, by how the names of its classes begin."""


def kinds(pipe: Any) -> set[str]:
    """Names of the classes of diffusers that a pipeline is of."""
    return {kind.__name__ for kind in type(pipe).__mro__ if kind.__module__.startswith("diffusers.pipelines.")}


def foreign(pipe: Any, families: Mapping[str, str]) -> str:
    """Why a pipeline is of no family, and the remedy; `families` are descriptions by their first class."""
    name, expected = type(pipe).__name__, "; ".join(families.values())
    said = f"pipeline {name} is not supported; expected one of: {expected}"
    begun = [begin for kind in kinds(pipe) for begin in MISSING if kind.startswith(begin)]
    if begun:
        return f"{said}. Missing for {name}: {MISSING[max(begun, key=len)]}"
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, Mapping) or "unet" not in parts:
        return said
    extra = [f"{what} ({part!r})" for part, what in ADDITIONS.items() if parts.get(part) is not None]
    left_out = f", without {' and '.join(extra)}" if extra else ""
    plain = "StableDiffusionXLPipeline" if "text_encoder_2" in parts else "StableDiffusionPipeline"
    if plain in families and parts.get("vae") is not None:
        said += f". Its network can be inverted by itself{left_out}: pass {plain}.from_pipe(pipe)"
    return said


def channels(pipe: Any, part: str = "vae") -> int:
    """Of the latents of a pipeline's autoencoder, that part of it.

    Raises:
        ValueError: it has none.
    """
    vae, name = getattr(pipe, part), type(pipe).__name__
    if vae is None:
        raise ValueError(f"{name} cannot be inverted: it has no {part}, which images go through; load it with one")
    return vae.config.get("latent_channels") or vae.config.z_dim


def unfit(
    unet: Any, channels: int, filled: tuple[str | None, ...] = (None,), labels: bool = False, images: bool = False
) -> Iterator[str]:
    """What of a UNet would be ignored, or ends in the middle, as sentences with the remedy.

    Args:
        unet: of a pipeline.
        channels: of its latents.
        filled: kinds of added embeddings that the family gives.
        labels: whether it gives class labels.
        images: whether it gives an IP-Adapter its images.
    """
    name = type(unet).__name__
    if isinstance(unet, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        yield f"its unet is wrapped in {name}, which spreads batches over devices; put unet.module in its place"
        return
    module = getattr(unet, "_orig_mod", unet)
    if not isinstance(module, ConfigMixin):
        yield f"its unet is a {name}, no model of diffusers, and says nothing of its inputs; use UNet2DConditionModel"
        return
    config = module.config
    takes = config.get("in_channels")
    if takes != channels:
        yield (
            f"its network takes {takes} channels and its latents have {channels}, as inpainting, depth and editing "
            "models have it; load a model for text to image"
        )
    needs_labels = config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None
    if labels and config.get("class_embed_type") not in (None, "timestep"):
        yield f"its network takes embeddings in place of class labels ({config.class_embed_type}); load one of labels"
    if needs_labels and not labels:
        yield "its network needs class labels, which this family has no place for; load a model without"
    if config.get("addition_embed_type") not in filled:
        kind = config.get("addition_embed_type")
        yield f"its network needs added embeddings of kind {kind!r}, which this family does not make; load its own kind"
    projected = unets.projected(module)
    if projected == unets.IMAGE_PROMPTS and images:
        yield from image_prompts.unfit(module)
    elif projected not in (None, "text_proj"):
        yield (
            f"its network needs image embeddings ({projected}), as with an IP-Adapter; call "
            "pipe.unload_ip_adapter(), or load a model without"
        )
    if config.get("attention_type", "default") != "default":
        yield f"its network has {config.attention_type} attention, as GLIGEN's, which needs boxes; load one without"


def patched(pipe: Any) -> str | None:
    """Why a pipeline's texts would not be encoded as its family's are."""
    own = vars(pipe).get("encode_prompt", getattr(type(pipe), "encode_prompt", None))
    module = getattr(own, "__module__", None) or ""
    if own is None or module.startswith("diffusers."):
        return None
    return (
        f"its encode_prompt is that of {module or type(own).__name__}, whose arguments are not known; pass "
        "prompt_embeds made with it to a pipeline of diffusers' own class"
    )


def remembers(network: torch.nn.Module) -> str | None:
    """Why a network's output depends on its earlier ones."""
    for part in network.modules():
        registry = vars(part).get("_diffusers_hook")
        names = [*getattr(registry, "hooks", ()), getattr(vars(part).get("forward"), "__module__", None) or ""]
        found = [name for name in names if name.startswith(PAST)]
        if found:
            return (
                f"its {type(network).__name__} reuses what earlier steps computed ({found[0]}), so that no step can be "
                "undone by itself; disable the cache (disable_cache(), or the helper's disable())"
            )
    return None
