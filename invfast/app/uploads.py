"""What is computed of uploaded files: are latents noise, do images have a watermark; and images that have one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from invfast import images, watermark
from invfast.analysis import Report, analyze
from invfast.app import jobs
from invfast.app.work import Settings
from invfast.inversion import Inversion


def analyse(paths: Sequence[str] | None) -> dict[str, Report]:
    """A report, by title, for every shape of latents among saved inversions.

    Raises:
        ValueError: no file, or one that is no inversion. ImportError: scipy is missing.
    """
    if not paths:
        raise ValueError("no files: drop what the Invert tab or `invfast invert` saved (.safetensors)")
    groups: dict[tuple[int, ...], list[Inversion]] = {}
    for path in paths:
        jobs.say(f"reading {Path(path).name}")
        inversion = Inversion.load(path)
        steps = inversion.schedule.num_steps
        if inversion.node < steps:
            stopped = f"{Path(path).name!r} was interrupted at node {inversion.node} of {steps}; it is not noise yet"
            warnings.warn(stopped, stacklevel=2)
        inversion.trajectory = None  # it may be a hundred times the rest
        groups.setdefault(tuple(inversion.latents.shape[1:]), []).append(inversion)
    reports = {}
    for shape, each in groups.items():
        jobs.say(f"analysing latents {shape}")
        latents, own = (torch.cat([getattr(x, name) for x in each]) for name in ("latents", "init_latents"))
        reports[f"{len(latents)} latents {shape}"] = analyze(latents, own)
    return reports


def detect(
    settings: Settings, paths: Sequence[str] | None, keys: Sequence[str] | None, prompt: str, fpr: float
) -> list[tuple[str, ...]]:
    """Of each image its name, the key that was found, p, and the share of the message's bits.

    Raises:
        ValueError: no image or key, one that cannot be read, or a share outside (0, 1). ImportError: scipy is missing.
    """
    if not paths:
        raise ValueError("no images: drop PNG, JPEG or WebP files")
    loaded = _keys(keys)
    if not 0 < fpr < 1:
        raise ValueError(f"the false positive rate must lie between 0 and 1, got {fpr}")
    rows, pictures = [], [images.load(path) for path in paths]
    how = {"method": settings.method, "num_inference_steps": settings.steps, "runtime": settings.runtime}
    for path, picture in zip(paths, pictures, strict=True):
        jobs.say(f"inverting {Path(path).name}")
        (score,) = watermark.detect(settings.pipe, picture, loaded, prompt, **how).scores
        verdict = Path(keys[score.key]).name if score.p_value <= fpr else "nothing found"
        bits = "" if score.bit_accuracy is None else f"{score.bit_accuracy:.0%} of {len(score.bits)}"
        rows.append((Path(path).name, verdict, f"{score.p_value:.1e}", bits))
    return rows


def embed(
    settings: Settings, keys: Sequence[str] | None, prompt: str, count: int, seed: int, guidance: float
) -> dict[str, Image.Image]:
    """So many images with a watermark, by the seeds of their noise. Raises what `detect` and `sample` do."""
    (key, *others) = _keys(keys)
    if others:
        raise ValueError(f"{len(others) + 1} keys: an image takes one")
    made = {}
    for number in range(seed, seed + count):
        jobs.say(f"drawing {number}")
        latents = key.embed(1, torch.Generator().manual_seed(number))
        how = {"num_inference_steps": settings.steps, "guidance_scale": guidance, "runtime": settings.runtime}
        made[str(number)] = watermark.sample(settings.pipe, latents, prompt, **how).images[0]
    return made


def _keys(paths: Sequence[str] | None) -> list[watermark.Key]:
    if not paths:
        raise ValueError("no key: drop a file that `invfast watermark key -o key.json` made")
    return [watermark.load_key(path) for path in paths]
