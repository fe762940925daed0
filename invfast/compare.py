"""Methods side by side on the same images: rows of figures and one picture. Needs the extra [eval]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from invfast import adapters, figures, images, metrics, plain, tables
from invfast.api import invert
from invfast.methods import Method
from invfast.returning import reconstruct

COLUMNS = {
    "evaluations": ("evals", "network evaluations of each image"),
    "seconds": ("sec", "wall time of the inversion of all images"),
    "latent_psnr": ("latent", "PSNR of the reconstructed latent, peak = range of the original's"),
    "psnr_to_vae": ("VAE", "PSNR of the reconstructed image against the VAE round trip"),
    "psnr": ("image", "PSNR against the original; the VAE round trip is the ceiling"),
    "ssim": ("SSIM", "structural similarity to the original"),
    "noise_std": ("std", "standard deviation of the noise found; true noise has 1"),
    "noise_kurtosis": ("kurt", "its kurtosis; true noise has 3"),
}
DIGITS = {"evaluations": 0, "seconds": 1, "ssim": 3, "noise_std": 2}


@dataclass(frozen=True)
class Comparison:
    """Figures and picture.

    Args:
        rows: the VAE round trip, then one a method; "method" and the keys of COLUMNS, means over images, PSNR in dB,
            None where a figure does not apply or is infinite.
        picture: one row an image: original, VAE round trip, every reconstruction, every map of errors where they were
            asked for, every x_T.
    """

    rows: list[dict[str, Any]]
    picture: Image.Image

    __repr__ = plain.line

    def print(self, console: Console) -> None:
        """The table, and what its columns mean."""
        table = Table(
            Column("method", overflow="fold"),
            *(Column(short, justify="right", no_wrap=True) for short, _ in COLUMNS.values()),
        )
        for row in self.texts():
            table.add_row(*row)
        console.print(table)
        for short, meaning in COLUMNS.values():
            console.print(f"  {short:7}{meaning}", style="dim")

    def texts(self) -> list[list[str]]:
        """The rows as people read them: the method, and a text for each of COLUMNS."""
        return [[row["method"], *(_text(name, row[name]) for name in COLUMNS)] for row in self.rows]

    def table(self, suffix: str) -> str:
        """The rows as ".csv" or ".tex" (LaTeX, with the package booktabs); see `tables.encode`."""
        titles = {"method": "method", **{name: short for name, (short, _) in COLUMNS.items()}}
        return tables.encode(self.rows, titles, _text, suffix)


def compare(
    pipe: Any,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    methods: Mapping[str, Method],
    *,
    names: Sequence[str],
    console: Console | None = None,
    cell: int = 96,
    error_map: bool = False,
    **options: Any,
) -> Comparison:
    """Inverts and reconstructs the pictures with every method.

    Args:
        pipe: the pipeline.
        pictures: PIL images of one size.
        prompts: one an image.
        methods: by the name to print.
        names: what to call the images in the picture.
        console: where to show what is running; None for silence.
        cell: longer side of each picture in the grid, in pixels.
        error_map: also show where each reconstruction is off the VAE round trip: the absolute difference, a mean over
            channels, black where there is none and white at the largest of all methods and images, which titles name.
        options: of `invert` (num_inference_steps, guidance_scale, dtype, runtime, ...).

    Raises:
        ImportError: torchmetrics is missing. Otherwise as `invert`.
    """
    model = adapters.resolve(pipe)(pipe)
    latents = model.encode(list(pictures), options.get("height"), options.get("width"))
    round_trip = model.decode(latents)
    size = round_trip.shape[2:]
    originals = images.to_pixels(list(pictures), 1, *size).to(round_trip) / 2 + 0.5
    rows = [{"method": "VAE round trip", **dict.fromkeys(COLUMNS), **_quality(round_trip, originals)}]
    shown, noises, errors = [images.to_pil(originals), images.to_pil(round_trip)], [], []
    for name, method in methods.items():
        with console.status(f"{name} ...") if console else nullcontext():
            inversion = invert(pipe, list(pictures), list(prompts), method=method, **options)
            rebuilt = reconstruct(pipe, inversion, output_type="pt", **_shared(options))
        noise, stats = inversion.latents, inversion.stats
        rows.append(
            {
                "method": name,
                "evaluations": sum(stats.evaluations) / len(stats.evaluations),
                "seconds": stats.seconds,
                "latent_psnr": _mean(metrics.latent_psnr(rebuilt.latents, inversion.init_latents)),
                "psnr_to_vae": _mean(metrics.psnr(rebuilt.images, round_trip)),
                **_quality(rebuilt.images, originals),
                "noise_std": _mean(noise.std((1, 2, 3))),
                "noise_kurtosis": _mean(metrics.kurtosis(noise)),
            }
        )
        shown.append(images.to_pil(rebuilt.images))
        noises.append(images.latents_to_pil(noise))
        errors.append((rebuilt.images - round_trip).abs().mean(1))
    titles = ["original", "VAE\nround trip", *methods]
    if error_map and errors:
        peak = max(float(each.max()) for each in errors)
        shown += [figures.heat(each, peak) for each in errors]
        titles += [f"error (white: {peak:.2g})\n{name}" for name in methods]
    titles += [f"x_T\n{name}" for name in methods]
    return Comparison(rows, figures.grid(list(zip(*shown, *noises, strict=True)), titles, names, cell))


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `reconstruct` takes of the options of `invert`."""
    return {name: options[name] for name in ("runtime", "dtype") if name in options}


def _quality(pixels: torch.Tensor, originals: torch.Tensor) -> dict[str, float | None]:
    return {"psnr": _mean(metrics.psnr(pixels, originals)), "ssim": _mean(metrics.ssim(pixels, originals))}


def _mean(values: torch.Tensor) -> float | None:
    mean = float(values.double().mean())
    return mean if math.isfinite(mean) else None


def _text(name: str, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.{DIGITS.get(name, 1)}f}"
