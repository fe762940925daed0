"""What is computed for the page: files and settings in, pictures and rows out. Nothing here knows a browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

import invfast
from invfast import adapters, editing, figures, images, metrics
from invfast.analysis import normality
from invfast.analysis.base import TooSmallError
from invfast.app import jobs
from invfast.compare import Comparison
from invfast.compare import compare as beside
from invfast.inversion import Inversion
from invfast.methods import Method
from invfast.methods.spelling import parse
from invfast.watermark import shape_of
from invfast.watermark.sampling import factor_of

LARGEST = 2048
"""Pixels of a side at most: more would take the machine's memory."""
SHOWN = 512
"""Pixels of a side from which a picture is shown as it is; a smaller one is enlarged."""

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Settings:
    """What the fields above all tabs say.

    Args:
        pipe: the pipeline.
        method: how images are inverted.
        steps: of the grid.
        side: of the images, in pixels; None is the model's own.
        runtime: where the network runs.
    """

    pipe: Any
    method: Method
    steps: int = 50
    side: int | None = None
    runtime: str = "auto"

    def size(self) -> tuple[int, int]:
        """Width and height of the images, in pixels.

        Raises:
            ValueError: a side that is too large or no multiple of the pipeline's factor, or it has no size of its own.
        """
        if self.side is not None and self.side > LARGEST:
            raise ValueError(f"size must be at most {LARGEST} pixels, got {self.side}")
        factor = factor_of(self.pipe)
        height, width = shape_of(self.pipe, self.side, self.side)[1:]
        return width * factor, height * factor

    def read(self, path: str | None, what: str = "image") -> Image.Image:
        """An uploaded picture, its middle cut out and resized to `size`.

        Raises:
            ValueError: none was given, or it cannot be read.
        """
        if not path:
            raise ValueError(f"no {what}: drop a PNG, JPEG or WebP file")
        return ImageOps.fit(images.load(path), self.size(), Image.Resampling.LANCZOS)

    def invert(self, pictures: list[Image.Image], prompts: list[str], **more: Any) -> Inversion:
        jobs.say("inverting")
        return invfast.invert(
            self.pipe,
            pictures,
            prompts,
            method=self.method,
            num_inference_steps=self.steps,
            runtime=self.runtime,
            **more,
        )


@dataclass(frozen=True)
class Inverted:
    """An image, what it was rebuilt as, its noise as a picture, and figures of both."""

    source: Image.Image
    rebuilt: Image.Image
    noise: Image.Image
    rows: Rows
    inversion: Inversion


def invert(settings: Settings, path: str | None, prompt: str) -> Inverted:
    """An image to its noise and back. Raises what `Settings.read`, `invert` and `reconstruct` do."""
    source = settings.read(path)
    inversion = settings.invert([source], [prompt])
    jobs.say("rebuilding")
    found = invfast.reconstruct(settings.pipe, inversion, output_type="pt")
    round_trip = adapters.resolve(settings.pipe)(settings.pipe).decode(inversion.init_latents)
    (rebuilt,), (noise,) = images.to_pil(found.images), images.latents_to_pil(inversion.latents)
    rows = [*_quality(found, inversion, round_trip), *_cost(inversion), *_noise(inversion.latents)]
    return Inverted(source, rebuilt, noise, rows, inversion)


def _quality(found: Any, inversion: Inversion, round_trip: torch.Tensor) -> Rows:
    """How near the way back came; nothing where torchmetrics is missing."""
    try:
        image = float(metrics.psnr(found.images, round_trip))
        latent = float(metrics.latent_psnr(found.latents, inversion.init_latents))
    except ImportError as error:
        return [("reconstruction", str(error))]
    return [("PSNR to VAE round trip", _decibels(image)), ("PSNR of the latent", _decibels(latent))]


def _cost(inversion: Inversion) -> Rows:
    stats, steps = inversion.stats, inversion.schedule.num_steps
    ran = f"{stats.runtime}, {str(stats.dtype).removeprefix('torch.')}, {stats.device}"
    return [
        ("evaluations", f"{stats.evaluations[0]} for {steps} steps"),
        ("seconds", f"{stats.seconds:.2f}"),
        ("ran on", ran),
    ]


def _noise(latents: torch.Tensor) -> Rows:
    """Figures of a normal distribution, each with what it is for noise; fewer where scipy is missing."""
    try:
        found = normality(latents.cpu())
    except (ImportError, TooSmallError):
        return [("noise: deviation (of 1)", f"{float(latents.std()):.3f}")]
    return [
        ("noise: deviation (of 1)", f"{found.std:.3f}"),
        ("noise: kurtosis (of 3)", f"{found.kurtosis:.2f}"),
        ("noise: KS distance", f"{found.ks_distance:.3f}"),
    ]


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"


def shown(picture: Image.Image) -> Image.Image:
    """A picture large enough to look at."""
    return figures.fitted(picture, max(SHOWN, *picture.size))


def compare(settings: Settings, path: str | None, prompt: str, methods: Sequence[str]) -> Comparison:
    """One image by several methods.

    Raises:
        ValueError: no method, or as `parse` and `Settings.read`. ImportError: torchmetrics is missing.
    """
    chosen = {name: parse(name) for name in methods}
    if not chosen:
        raise ValueError("no methods to compare: choose some")
    picture = settings.read(path)
    jobs.say("comparing")
    more = {"num_inference_steps": settings.steps, "runtime": settings.runtime}
    return beside(settings.pipe, [picture], [prompt], chosen, names=[Path(path).stem[:40]], cell=128, **more)


@dataclass(frozen=True)
class Asked:
    """What an edit is to be.

    Args:
        prompt: what the image is to show.
        editor: a name of `editing.EDITORS`.
        guidance: of the edit.
        negative: what it is not to show.
        mask: a picture's path, white where the image may change; None is everywhere.
        style: the path of the image whose style it takes, of "portrait".
        style_prompt: what that image shows.
    """

    prompt: str
    editor: str = "prompt"
    guidance: float = 7.5
    negative: str = ""
    mask: str | None = None
    style: str | None = None
    style_prompt: str = ""


def edit(settings: Settings, path: str | None, prompt: str, asked: Asked) -> tuple[Image.Image, Image.Image, Rows]:
    """An image inverted and regenerated under another prompt: the image, the edit, figures.

    Raises:
        ValueError: no new prompt, or as `Settings.read`. Otherwise as `invert` and `edit`.
    """
    editor = editing.resolve(asked.editor)
    if not asked.prompt.strip():
        raise ValueError("no new prompt: say what the image is to show")
    source, mask, style = settings.read(path), None, None
    if asked.mask:
        mask = editing.read_mask(settings.read(asked.mask, "mask").convert("L"), 1)
    inversion = settings.invert([source], [prompt], save_trajectory=True)  # direct and masks need it
    if asked.style:
        picture = settings.read(asked.style, "style")
        style = settings.invert([picture], [asked.style_prompt], save_trajectory=True)
    jobs.say("editing")
    found = invfast.edit(
        settings.pipe,
        inversion,
        asked.prompt,
        method=editor,
        guidance_scale=asked.guidance,
        negative_prompt=asked.negative or None,
        mask=mask,
        style=style,
    )
    rows = [*_cost(inversion), ("seconds of the edit", f"{found.stats.seconds:.2f}")]
    return source, found.images[0], rows


def interpolate(
    settings: Settings, paths: Sequence[str | None], prompts: Sequence[str], count: int
) -> list[Image.Image]:
    """So many pictures from one image to another, both among them. Raises what `invert` and `interpolate` do."""
    pictures = [settings.read(path, f"{name} image") for path, name in zip(paths, ("first", "second"), strict=True)]
    both = settings.invert(pictures, list(prompts))
    jobs.say("interpolating")
    return invfast.interpolate(settings.pipe, both[0], both[1], count).images
