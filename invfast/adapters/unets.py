"""What families have in common whose network is a UNet of diffusers'."""

from __future__ import annotations

import torch

from invfast.denoiser import Form


def form(unet: torch.nn.Module) -> Form:
    """Of a UNet2DConditionModel or a UNet2DModel."""
    return Form(unet.config.in_channels, halvings(unet), in_float=_in_float(unet))


def halvings(unet: torch.nn.Module) -> int:
    """By how much its lowest level is smaller than its input."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def text_width(unet: torch.nn.Module) -> int | None:
    """Of the embeddings a UNet2DConditionModel takes, None where its layers want several."""
    given = unet.config.get("encoder_hid_dim") or unet.config.cross_attention_dim
    widths = {given} if isinstance(given, int) else set(given)
    return widths.pop() if len(widths) == 1 else None


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
