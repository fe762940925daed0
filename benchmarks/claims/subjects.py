"""The models that are asked, and what they are asked with. All of it is fixed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from invfast import demo
from invfast.analysis import gaussian, plain_mask
from invfast.fingerprint import fingerprint
from invfast.methods import METHODS, Auto, ForwardStart, Method

SEED = 41
"""Shard j draws its noise from SEED + j."""
AUTO = "auto(budget=1.2)"


def started(k: int) -> str:
    """Name of a forward start in rows."""
    return f"forward start, K = {k}"


@dataclass(frozen=True)
class Subject:
    """A model, and how much of it is asked.

    Args:
        name: of its rows.
        load: makes the pipeline.
        shape: (C, h, w) of its latents.
        steps: N.
        shards: of how many images.
        each: images a shard.
        prompted: whether it is told what to draw.
        starts: K of the forward starts.
        others: methods beside them, DDIM and `auto`.
    """

    name: str
    load: Callable[[], Any]
    shape: tuple[int, int, int]
    steps: int
    shards: int
    each: int
    prompted: bool
    starts: tuple[int, ...] = (1, 2, 3, 5)
    others: tuple[str, ...] = ()

    def prompts(self, count: int | None = None) -> list[str] | str:
        """What the first images of a shard show: the bundled samples' captions in turn."""
        known = list(demo.PROMPTS.values())
        return [known[j % len(known)] for j in range(count or self.each)] if self.prompted else ""

    def noise(self, shard: int) -> torch.Tensor:
        """(each, C, h, w) standard normal."""
        return gaussian((self.each, *self.shape), SEED + shard)

    def methods(self) -> dict[str, Method]:
        """By name."""
        return {
            "ddim": METHODS["ddim"],
            **{started(k): ForwardStart(k) for k in self.starts},
            AUTO: Auto(budget=1.2),
            **{name: METHODS[name] for name in self.others},
        }

    @functools.cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded once."""
        return self.load()

    @functools.cached_property
    def weights(self) -> str:
        """Digests of what draws: networks and autoencoder."""
        names = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
        parts = [getattr(self.pipe, name, None) for name in names]
        return " ".join(str(fingerprint(part).weights) for part in parts if part is not None)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) what latents show, about -1 to 1."""
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            return latents
        with torch.inference_mode():
            return vae.decode(latents / vae.config.scaling_factor).sample

    def plain(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, H, W) bool, which pixels of what they show are plain."""
        return plain_mask(self.pictures(latents))


SHARES = (1, 2, 3, 4, 5, 8, 12, 16, 20)
"""K of 20: what the paper asks for, and on to the whole."""
PRIOR = ("easyinv", "renoise", "fixed_point")
SUBJECTS = (
    Subject("latent", demo.load_pipeline, (4, 16, 16), 20, 4, 64, True, SHARES, PRIOR),
    Subject("flow", demo.load_flow_pipeline, (4, 16, 16), 20, 1, 64, True),
    Subject("pixel", demo.load_pixel_pipeline, (3, 32, 32), 20, 32, 128, False, (1, 2, 3, 5)),
)
QUICK = (
    Subject("latent", demo.load_pipeline, (4, 16, 16), 10, 1, 16, True, (1, 2), ("easyinv",)),
    Subject("flow", demo.load_flow_pipeline, (4, 16, 16), 8, 1, 8, True, (1, 2)),
    Subject("pixel", demo.load_pixel_pipeline, (3, 32, 32), 10, 2, 16, False, (1, 2)),
)
