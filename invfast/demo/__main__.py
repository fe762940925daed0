"""`make demo`: the sample images inverted and rebuilt by several methods, as a table and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import torch
import transformers
from rich.console import Console
from rich.table import Column, Table

from invfast import demo, images, invert, metrics, reconstruct
from invfast.adapters import StableDiffusion
from invfast.inversion import Inversion
from invfast.methods import DDIM, EasyInv, FixedPoint, ForwardStart, Method

METHODS: dict[str, Method] = {
    "DDIM": DDIM(),
    "EasyInv": EasyInv(),
    "forward start K=2": ForwardStart(2),
    "warm start": FixedPoint(1, warm_start="constant"),
    "averaged 3": FixedPoint(3, "averaged"),
    "Anderson 3": FixedPoint(3, "anderson"),
}
MORE_METHODS: dict[str, Method] = {
    "warm start, linear": FixedPoint(1, warm_start="linear"),
    "Anderson 5": FixedPoint(5, "anderson"),
}
SAMPLES = ("peach", "soccer_ball", "astronaut", "cat", "coffee")
COLUMNS = {
    "evals": "network evaluations of each image",
    "sec": "wall time of the inversion of all images",
    "latent": "PSNR of the reconstructed latent, peak = range of the original's",
    "VAE": "PSNR of the reconstructed image against the VAE round trip",
    "image": "PSNR against the original; the VAE round trip is the ceiling",
    "SSIM": "structural similarity to the original",
    "x_T": "standard deviation and kurtosis of the noise; true noise has 1 and 3",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m invfast.demo", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/demo.png"), help="the picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="steps of the grid (%(default)s)")
    parser.add_argument("--all", action="store_true", help="every sample image, and two more methods (minutes)")
    args = parser.parse_args()

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe, samples = demo.load_pipeline(), demo.load_images()
    names, methods = (list(samples), METHODS | MORE_METHODS) if args.all else (list(SAMPLES), METHODS)
    originals = [samples[name].image for name in names]
    prompts = [samples[name].prompt for name in names]
    console = Console()
    console.print(f"{len(originals)} images of 64 px, {args.steps} steps, guidance 1, float32 on {pipe.device}")

    target = images.to_pixels(originals, pipe.vae_scale_factor) / 2 + 0.5
    model = StableDiffusion(pipe)
    round_trip = model.decode(model.encode(originals, None, None))
    table = Table(Column("method", no_wrap=True), *(Column(name, justify="right") for name in COLUMNS))
    table.add_row("VAE round trip", "", "", "", "", *_quality(round_trip, target), "")
    columns, pictures, noises = ["original", "VAE\nround trip"], [originals, images.to_pil(round_trip)], []
    for name, method in methods.items():
        with console.status(f"{name} ..."):
            inversion = invert(pipe, originals, prompts, method=method, num_inference_steps=args.steps)
            rebuilt = reconstruct(pipe, inversion, output_type="pt")
        table.add_row(name, *_measures(inversion, rebuilt.latents, rebuilt.images, round_trip, target))
        columns.append(name.replace(" start", "\nstart"))
        pictures.append(images.to_pil(rebuilt.images))
        noises.append(images.latents_to_pil(inversion.latents))
    console.print(table)
    for name, meaning in COLUMNS.items():
        console.print(f"  {name:7}{meaning}", style="dim")

    columns += [f"x_T\n{name.replace(' start', '')}" for name in methods]
    rows = list(zip(*pictures, *noises, strict=True))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    images.grid(rows, columns, [name.replace("_", " ") for name in names], cell=96).save(args.output)
    console.print(f"picture: {args.output}", soft_wrap=True)


def _measures(
    inversion: Inversion, latents: torch.Tensor, pixels: torch.Tensor, round_trip: torch.Tensor, target: torch.Tensor
) -> list[str]:
    stats, noise = inversion.stats, inversion.latents
    return [
        f"{sum(stats.evaluations) / len(stats.evaluations):.0f}",
        f"{stats.seconds:.1f}",
        f"{metrics.latent_psnr(latents, inversion.init_latents).mean():.1f}",
        f"{metrics.psnr(pixels, round_trip).mean():.1f}",
        *_quality(pixels, target),
        f"{noise.std((1, 2, 3)).mean():.2f} {metrics.kurtosis(noise).mean():.1f}",
    ]


def _quality(pixels: torch.Tensor, target: torch.Tensor) -> tuple[str, str]:
    return f"{metrics.psnr(pixels, target).mean():.1f}", f"{metrics.ssim(pixels, target).mean():.3f}"


if __name__ == "__main__":
    main()
