"""`make demo`: the sample images inverted and rebuilt by several methods, as a table and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

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
SAMPLES = ("peach", "soccer_ball", "cat_face", "astronaut", "cat", "coffee")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m invfast.demo", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/demo.png"), help="the picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the grid (%(default)s)")
    args = parser.parse_args()

    pipe, samples = demo.load_pipeline(), demo.load_images()
    originals = [samples[name].image for name in SAMPLES]
    prompts = [samples[name].prompt for name in SAMPLES]
    console = Console()
    console.print(f"{len(originals)} images of 64 px, {args.steps} steps, guidance 1, float32 on {pipe.device}")

    target = images.to_pixels(originals, pipe.vae_scale_factor) / 2 + 0.5
    model = StableDiffusion(pipe)
    round_trip = model.decode(model.encode(originals, None, None))
    table = _table()
    table.add_row("VAE round trip", "", "", "", "", *_quality(round_trip, target), "", "")
    columns, pictures, noises = ["original", "VAE\nround trip"], [originals, images.to_pil(round_trip)], []
    for name, method in METHODS.items():
        with console.status(f"{name} ..."):
            inversion = invert(pipe, originals, prompts, method=method, num_inference_steps=args.steps)
            rebuilt = reconstruct(pipe, inversion, output_type="pt")
        table.add_row(name, *_measures(inversion, rebuilt.latents, rebuilt.images, round_trip, target))
        columns.append(name.replace(" start", "\nstart"))
        pictures.append(images.to_pil(rebuilt.images))
        noises.append(images.latents_to_pil(inversion.latents))
    console.print(table)

    columns += [f"x_T\n{name.replace(' start', '')}" for name in METHODS]
    rows = list(zip(*pictures, *noises, strict=True))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    images.grid(rows, columns, [name.replace("_", " ") for name in SAMPLES], cell=96).save(args.output)
    console.print(f"picture: {args.output}", soft_wrap=True)


def _table() -> Table:
    table = Table(
        caption="PSNR in dB, means over the images. to VAE: against the VAE round trip; to original: the round trip is "
        "the ceiling. x_T of true noise has std 1 and kurtosis 3."
    )
    table.add_column("method", no_wrap=True)
    headings = (
        "evaluations",
        "seconds",
        "latent PSNR",
        "PSNR to VAE",
        "PSNR to original",
        "SSIM to original",
        "x_T std",
        "x_T kurtosis",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


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
        f"{noise.std((1, 2, 3)).mean():.2f}",
        f"{metrics.kurtosis(noise).mean():.1f}",
    ]


def _quality(pixels: torch.Tensor, target: torch.Tensor) -> tuple[str, str]:
    return f"{metrics.psnr(pixels, target).mean():.1f}", f"{metrics.ssim(pixels, target).mean():.3f}"


if __name__ == "__main__":
    main()
