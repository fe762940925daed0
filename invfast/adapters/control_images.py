"""What ControlNets are shown, as callers give it: an image for each, and how much it counts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from invfast import arguments
from invfast.adapters import controlnets, texts

if TYPE_CHECKING:
    from invfast.adapters.base import Adapter

IMAGE, SCALE = "control_image", "controlnet_conditioning_scale"
FIXED = {"control_guidance_start": 0, "control_guidance_end": 1, "guess_mode": False}
"""What diffusers' pipelines take too, and the only values that leave it one network at all steps, in both branches."""
TAKES = (IMAGE, SCALE, *FIXED)


def check(pipe: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller says, without what has one value only and with what is the pipeline's by default.

    Raises:
        ValueError: images are missing or given to none, or something asks for another network at some steps.
    """
    controlnet, name = controlnets.of(pipe), type(pipe).__name__
    given = [each for each in TAKES if each in found]
    if controlnet is None:
        if given:
            raise ValueError(f"{given[0]} is for a ControlNet, and this {name} has none; pass a pipeline with one")
        return dict(found)
    for each, only in FIXED.items():
        value = found.get(each, only)
        if any(one != only for one in (value if isinstance(value, (list, tuple)) else [value])):
            raise ValueError(
                f"{each}={value!r} would leave the ControlNet out of some steps, or of one branch of guidance, which "
                f"is not supported; leave it at {only}"
            )
    if IMAGE not in found:
        raise ValueError(
            f"this {name} needs {IMAGE}, what its ControlNet is shown; pass it, or the pipeline without its ControlNet"
        )
    count = len(controlnets.nets(controlnet))
    for j, shown in enumerate(_each(found[IMAGE], count)):
        arguments.check_images(_named(j, count), shown)
    rest = {each: value for each, value in found.items() if each not in FIXED}
    return {**rest, SCALE: _scales(found.get(SCALE, _default(pipe)), count)}


def inputs(model: Adapter, latents: torch.Tensor, more: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The network's inputs, the same in both branches of guidance.

    Raises:
        ValueError, TypeError: something that is no image, or not one for all and not one an image.
    """
    pipe, found = model.pipe, {}
    controlnet = controlnets.of(pipe)
    if controlnet is None:
        return found
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[2:])
    each = controlnets.nets(controlnet)
    for j, (image, net) in enumerate(zip(_each(more[IMAGE], len(each)), each, strict=True)):
        image, name = list(image) if isinstance(image, tuple) else image, _named(j, len(each))
        try:
            pixels = pipe.control_image_processor.preprocess(image, height=height, width=width)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        shape = (net.config.conditioning_channels, height, width)
        found[f"{controlnets.IMAGES}{j}"] = texts.given(pixels, len(latents), name, shape, model.device)
    scales = torch.tensor([more[SCALE]], dtype=model.latent_dtype, device=model.device)
    return {**found, controlnets.SCALES: scales.expand(len(latents), -1)}


def _named(j: int, count: int) -> str:
    """What one of several ControlNets is shown, for errors."""
    return IMAGE if count == 1 else f"{IMAGE}[{j}]"


def _each(image: Any, count: int) -> list[Any]:
    """What each of several ControlNets is shown, of one entry a ControlNet or, as in diffusers, lists of one an image
    that is inverted.
    """
    if count == 1:
        return [image]
    lists = isinstance(image, (list, tuple)) and bool(image) and all(isinstance(one, (list, tuple)) for one in image)
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if {len(one) for one in (entries if lists else [entries])} != {count}:
        raise ValueError(
            f"{IMAGE} must have one entry for each of {count} ControlNets, or be lists of {count}, one list an image, "
            f"got {'lists of ' + ', '.join(str(len(one)) for one in entries) if lists else len(entries)}"
        )
    return [list(shown) for shown in zip(*entries, strict=True)] if lists else entries


def _scales(scale: Any, count: int) -> list[float]:
    """One a ControlNet, of a number for all or as many."""
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * count
    plain = all(isinstance(one, Real) and not isinstance(one, bool) and math.isfinite(one) for one in scales)
    if len(scales) != count or not plain:
        raise ValueError(f"{SCALE} must be a finite number, or a list of {count}, one a ControlNet, got {scale!r}")
    return [float(one) for one in scales]


def _default(pipe: Any) -> float:
    """How much the pipeline's own call lets ControlNets count where nothing else is said."""
    asked = inspect.signature(type(pipe).__call__).parameters.get(SCALE)
    return 1.0 if asked is None else asked.default
