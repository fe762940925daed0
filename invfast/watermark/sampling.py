"""Latents with a watermark made images, on any pipeline that can be inverted."""

from __future__ import annotations

from typing import Any

import torch

from invfast import adapters, arguments, grids
from invfast.ambient import neutral
from invfast.analysis.base import checked
from invfast.analysis.recording import sampling
from invfast.arguments import Text
from invfast.reconstruction import Reconstruction
from invfast.returning import reconstruct


@neutral()
def sample(
    pipe: Any,
    latents: torch.Tensor,
    prompt: Text = "",
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: Text | None = None,
    **options: Any,
) -> Reconstruction:
    """Images from latents, by DDIM or, of rectified flow, by Euler's steps.

    A pipeline of diffusers that takes `latents=` and samples without noise of its own does the same. Some take none
    (DDPMPipeline), or packed ones (FLUX.1, Qwen-Image); here all take (n, C, h, w).

    Args:
        pipe: a pipeline as for `invert`; left untouched.
        latents: (n, C, h, w), what `Key.embed` makes.
        prompt: one text for all or one an image.
        num_inference_steps: steps of the grid.
        guidance_scale: above 1 the network also runs the negative prompt. Pixel-space pipelines know none: pass 1.
        negative_prompt: one text or one an image.
        **options: of `reconstruct`: runtime, dtype, output_type, prompt_embeds, conditions.

    Raises:
        TypeError, ValueError: as `reconstruct`.
    """
    start = checked("latents", latents)
    model = adapters.resolve(pipe)(pipe, options.get("runtime", "auto"), options.get("dtype"))
    grid = grids.of_call(model, None, num_inference_steps, None, None)(start.shape)
    embeds = options.get("prompt_embeds"), options.get("negative_prompt_embeds")
    texts = arguments.texts(len(start), prompt, negative_prompt, *embeds)
    return reconstruct(pipe, sampling(start, grid, texts, guidance_scale), **options)


def shape_of(pipe: Any, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
    """Latents (C, h, w) of a pipeline's images.

    Args:
        pipe: a pipeline as for `invert`.
        height: of the images, in pixels; by default what the network was trained on.
        width: likewise.

    Raises:
        TypeError, ValueError: no such pipeline, a side that is no positive multiple of its factor, or its network does
            not say what it was trained on.
    """
    model = adapters.resolve(pipe)(pipe)
    factor, config = factor_of(pipe), model.denoiser.network.module.config
    own = config.get("sample_size")
    if own is None and (height is None or width is None):
        raise ValueError(f"the network of {type(pipe).__name__} has no size of its own: pass height and width")
    own = (own, own) if not isinstance(own, (tuple, list)) else own
    given = [(each, side) for each, side in zip((height, width), own, strict=True)]
    for name, (each, _) in zip(("height", "width"), given, strict=True):
        if each is not None and (isinstance(each, bool) or not isinstance(each, int) or each < 1 or each % factor):
            raise ValueError(f"{name} must be a positive multiple of {factor}, got {each!r}")
    return (model.denoiser.form.channels, *(side if each is None else each // factor for each, side in given))


def factor_of(pipe: Any) -> int:
    """Pixels to one latent, along a side."""
    vae = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    if vae is None:
        return 1
    return getattr(pipe, "vae_scale_factor", None) or 2 ** (len(vae.config.block_out_channels) - 1)
