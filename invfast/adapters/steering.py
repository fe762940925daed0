"""What steers a UNet beside its text: images of an IP-Adapter, images of ControlNets. One door to both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from invfast.adapters import control_images, image_prompts
from invfast.denoiser import Condition

if TYPE_CHECKING:
    from invfast.adapters.base import Adapter

IMAGES = (*image_prompts.TAKES, control_images.IMAGE)
TAKES = (*image_prompts.TAKES, *control_images.TAKES)


def check(pipe: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller says, checked as far as it can be before the latents are there."""
    image_prompts.check(pipe, found)
    return control_images.check(pipe, found)


def steered(model: Adapter, latents: torch.Tensor, more: Mapping[str, Any], condition: Condition) -> Condition:
    """A condition with these images in it. Control images are the same tensors in both branches."""
    positive, negative = condition
    shown, hidden = image_prompts.inputs(model, len(latents), more, negative is not None)
    control = control_images.inputs(model, latents, more)
    return {**positive, **shown, **control}, None if negative is None else {**negative, **hidden, **control}
