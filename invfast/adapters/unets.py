"""What families have in common whose network is a UNet of diffusers'."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from invfast.denoiser import EMBEDS, GUIDANCE, Form
from invfast.denoiser.clone import as_it_is

LEADING = (EMBEDS, GUIDANCE, "class_labels")
"""Inputs that a UNet takes by these names itself."""
IMAGE_PROMPTS, IMAGES = "ip_image_proj", "image_embeds_"
"""An IP-Adapter's encoder_hid_dim_type, and how the inputs of its images begin, one an adapter."""

CONTROL = "control_of_attention_"
"""How inputs begin that attention processors are told, by cross_attention_kwargs' "edit"."""

UNCALIBRATED = "its ranges are measured on texts, and this network takes"
"""How a form says that int8 is not for networks that are shown images."""


def form(unet: torch.nn.Module) -> Form:
    """Of a UNet2DConditionModel or a UNet2DModel."""
    found = Form(unet.config.in_channels, halvings(unet), _flat, _in_float(unet))
    if projected(unet) != IMAGE_PROMPTS:
        return found
    return replace(found, uncalibrated=f"{UNCALIBRATED} images too; take another dtype")


def _flat(unet: torch.nn.Module) -> torch.nn.Module:
    config = unet.config
    added = config.get("addition_embed_type") is not None or projected(unet) == IMAGE_PROMPTS
    return Flat(unet) if added or config.out_channels != config.in_channels else unet


class Flat(torch.nn.Module):
    """A private UNet whose added conditions are inputs of their own, and which leaves out the variance it has learned.

    Args:
        unet: the private one.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.channels = unet.config.in_channels
        self.unet = in_dtype(unet)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, return_dict: bool = False, **static: torch.Tensor
    ) -> tuple[torch.Tensor]:
        return (self.unet(x, t, **nested(static), return_dict=False)[0][:, : self.channels],)


def projected(unet: torch.nn.Module) -> str | None:
    """What it projects before its layers read it: loaders of IP-Adapters set the attribute, not the item."""
    return getattr(unet.config, "encoder_hid_dim_type", None)


def nested(static: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a UNet takes, of flat inputs: by their own names, or among its added conditions."""
    added: dict[str, Any] = dict(static)
    control = {name.removeprefix(CONTROL): added.pop(name) for name in static if name.startswith(CONTROL)}
    given: dict[str, Any] = {name: added.pop(name) for name in LEADING if name in added}
    count = sum(name.startswith(IMAGES) for name in added)
    if count:
        added["image_embeds"] = [added.pop(f"{IMAGES}{j}") for j in range(count)]
    if control:
        given["cross_attention_kwargs"] = {"edit": control}
    return {**given, "added_cond_kwargs": added} if added else given


def in_dtype(network: torch.nn.Module) -> torch.nn.Module:
    """A private network whose sinusoids of sizes are in their dtype; one of the caller's is left as it is."""
    if getattr(network, "add_time_proj", None) is None or as_it_is(network) is not None:
        return network
    found = copy.copy(network)
    found._modules = {**network._modules, "add_time_proj": _InDtype(network.add_time_proj)}
    return found


class _InDtype(torch.nn.Module):
    """Sinusoids in the dtype of the sizes they are of: beside texts in half precision ONNX takes no float32."""

    def __init__(self, sinusoids: torch.nn.Module) -> None:
        super().__init__()
        self.sinusoids = sinusoids

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sinusoids(x).to(x.dtype)


def halvings(unet: torch.nn.Module) -> int:
    """By how much its lowest level is smaller than its input."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def text_width(unet: torch.nn.Module) -> int | None:
    """Of the embeddings a UNet2DConditionModel takes, None where its layers want several."""
    given = unet.config.get("encoder_hid_dim") or unet.config.cross_attention_dim
    widths = {given} if isinstance(given, int) else set(given)
    return widths.pop() if len(widths) == 1 else None


def guidance(unet: torch.nn.Module, scale: float) -> float:
    """The scale as far as it runs a second branch: 1 where it is below, or an input of the network itself (LCM)."""
    return scale if scale > 1 and unet.config.time_cond_proj_dim is None else 1.0


def guided(pipe: Any, batch: int, scale: float, device: torch.device) -> dict[str, torch.Tensor]:
    """The guidance scale as an input, where the network takes it as one (Luo et al., 2023, arXiv 2310.04378)."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return {}
    scales = torch.tensor(scale - 1, device=device).repeat(batch)
    return {GUIDANCE: pipe.get_guidance_scale_embedding(scales, embedding_dim=width)}


def _in_float(unet: torch.nn.Module) -> tuple[str, ...]:
    """What int8 leaves in floating point.

    As the field does, the first and last convolution and all of the time (and what is embedded with it). The keys and
    values of the text: a few percent of the work, and so the ranges need not know the caller's prompts. And the
    outermost level, where on the bundled UNet the error comes from: 2.3e-2 of one evaluation with it in floating point,
    6.4e-2 without (mean over 10 times of 16 images).
    """
    parts = [r"conv_in", r"conv_out", r"\w*time_emb\w*", r"add_embedding", r"attn2\.to_[kv]"]
    levels = len(unet.config.block_out_channels)
    if levels > 1:
        parts += [r"down_blocks\.0", rf"up_blocks\.{levels - 1}"]
    return tuple(rf".*\.{part}[./].*" for part in parts)
