"""A community pipeline for diffusers: StableDiffusionPipeline with an `invert`. See docs/diffusers.md."""

from typing import Any

from diffusers import StableDiffusionPipeline

import invfast


class InvertibleStableDiffusionPipeline(StableDiffusionPipeline):
    """StableDiffusionPipeline, and the way from an image back to its noise."""

    def invert(self, image: Any, prompt: str | list[str] = "", **how: Any) -> invfast.Inversion:
        """Finds the noise (B, C, h, w) of images; arguments and errors are those of `invfast.invert`."""
        return invfast.invert(self, image, prompt, **how)
