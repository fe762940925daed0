"""ControlNets: images of edges, poses or depths that steer a UNet. Zhang et al., ICCV 2023 (arXiv 2302.05543)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel

from invfast.adapters import unets
from invfast.denoiser import EMBEDS, Form
from invfast.denoiser.clone import as_it_is, own_dtype
from invfast.store import READY

IMAGES, SCALES = "control_image_", "control_scales"
"""The network's inputs: how those of the images begin, one a ControlNet, and (B, ControlNets) how much they count."""
LIKE = ("in_channels", "cross_attention_dim", "addition_embed_type", "block_out_channels")
"""Settings that a ControlNet has from the network it is made for."""

_kept: weakref.WeakKeyDictionary[Any, UNetWithControlNet] = weakref.WeakKeyDictionary()
"""By pipeline, for what is kept of a network goes with its module. It holds a pipeline's parts, not the pipeline."""
_lock = threading.Lock()
READY.also(_kept.clear)


class UNetWithControlNet(torch.nn.Module):
    """A UNet and what steers it as one network, called with plain tensors.

    Args:
        unet, controlnet: the caller's, or private ones.
    """

    def __init__(self, unet: torch.nn.Module, controlnet: torch.nn.Module) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Those of both, by name, as models of diffusers have them."""
        named = self.named_modules()
        return {f"{name}.processor": part.processor for name, part in named if hasattr(part, "get_processor")}

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, return_dict: bool = False, **static: torch.Tensor
    ) -> tuple[torch.Tensor]:
        scales = [each.reshape(-1, 1, 1, 1) for each in static.pop(SCALES).unbind(1)]
        images = [static.pop(f"{IMAGES}{j}") for j in range(len(scales))]
        given, several = unets.nested(static), hasattr(self.controlnet, "nets")
        down, mid = self.controlnet(
            x,
            t,
            encoder_hidden_states=given[EMBEDS],
            controlnet_cond=images if several else images[0],
            conditioning_scale=scales if several else scales[0],
            added_cond_kwargs=given.get("added_cond_kwargs"),
            return_dict=False,
        )
        steered = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.unet(x, t, **given, **steered, return_dict=False)


def of(pipe: Any) -> torch.nn.Module | None:
    """A pipeline's ControlNet, or several as one module."""
    return getattr(pipe, "controlnet", None)


def network(pipe: Any) -> torch.nn.Module:
    """What is inverted: the UNet, with what steers it; for the same two always the same module."""
    if of(pipe) is None:
        return pipe.unet
    with _lock:
        kept = _kept.get(pipe)
        if kept is None or kept.unet is not pipe.unet or kept.controlnet is not pipe.controlnet:
            kept = _kept[pipe] = UNetWithControlNet(pipe.unet, pipe.controlnet)
    return kept


def form(pipe: Any) -> Form:
    """Of `network`."""
    if of(pipe) is None:
        return unets.form(pipe.unet)
    # Control images are larger than latents by the autoencoder's factor: open axes of both would have to say so.
    why = f"{unets.UNCALIBRATED} a control image too; take another dtype"
    return Form(pipe.unet.config.in_channels, flat=_flat, uncalibrated=why)


def _flat(network: UNetWithControlNet) -> torch.nn.Module:
    if as_it_is(network) is not None:
        return network
    each = [unets.in_dtype(net) for net in nets(network.controlnet)]
    several = hasattr(network.controlnet, "nets")
    return UNetWithControlNet(unets.in_dtype(network.unet), MultiControlNetModel(each) if several else each[0])


def nets(controlnet: torch.nn.Module) -> list[torch.nn.Module]:
    """The one, or each of several."""
    return list(getattr(controlnet, "nets", (controlnet,)))


def unfit(pipe: Any) -> Iterator[str]:
    """Why a pipeline's ControlNets cannot steer its network here, as sentences with the remedy."""
    whole, unet = getattr(of(pipe), "_orig_mod", of(pipe)), pipe.unet
    if whole is None:
        return
    if unet.config.time_cond_proj_dim is not None and not hasattr(pipe, "get_guidance_scale_embedding"):
        yield "its network takes the guidance as an input, as LCMs do, and its class gives none; use the one for text"
    for net in (getattr(each, "_orig_mod", each) for each in nets(whole)):
        name = type(net).__name__
        if not isinstance(net, ControlNetModel):
            yield f"its controlnet is a {name}; use a ControlNetModel"
            continue
        if net.config.global_pool_conditions:
            yield f"its {name} pools its conditions, which leaves out one branch of guidance; load one that does not"
        yield from _unlike(net, unet, name)
        factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
        if factor != pipe.vae_scale_factor:
            yield f"its {name} halves images to 1/{factor}, its vae to 1/{pipe.vae_scale_factor}; load a pair"


def _unlike(net: ControlNetModel, unet: torch.nn.Module, name: str) -> Iterator[str]:
    """What a ControlNet has otherwise than the network it is to steer."""
    for each in LIKE:
        own, its = _same(net.config.get(each)), _same(unet.config.get(each))
        if own != its:
            yield f"its {name} has {each} {own} and its unet {its}; load a pair"
    first = {part.conv_in.weight.dtype for part in (net, unet)}
    if len(first) > 1 and own_dtype(net) != own_dtype(unet):  # what is stored in another may compute in one
        yield f"its {name} is {own_dtype(net)} and its unet {own_dtype(unet)}; load both in one dtype"


def _same(value: Any) -> Any:
    """A setting, lists and tuples alike."""
    return tuple(value) if isinstance(value, list) else value
