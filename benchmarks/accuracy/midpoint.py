"""Latents half way there and half way back: python -m benchmarks.accuracy.midpoint; after figure 2 of EasyInv's paper.

An exact inversion passes through the same latent in both directions. A row an image and model, the bundled one and its
early checkpoint: the image, then for each method the latent at step N / 2 of the inversion, the one at the same node on
the way back, and their difference, three times as strong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.accuracy import pictures
from benchmarks.accuracy.cases import NAMED, Case
from benchmarks.accuracy.measure import encode, there_and_back
from benchmarks.accuracy.run import Bench
from invfast import figures, images

OUTPUT = Path(__file__).parents[2] / "docs" / "midpoint.png"
METHODS, IMAGES, STEPS, STRONGER = ("DDIM", "EasyInv", "auto 70"), "bundled 4", 50, 3


def picture(bench: Bench, steps: int = STEPS) -> Image.Image:
    """The grid of pictures."""
    rows, names = [], []
    chosen = pictures.load(IMAGES)
    for model in ("emoji64", "emoji64-early"):
        pipe = bench.model(model)
        given, columns = encode(pipe, chosen), [chosen.images]
        for name in METHODS:
            case = Case("early", name, NAMED[name], steps, IMAGES, model=model)
            inversion, _, back = there_and_back(pipe, case, given.x, given.prompts)
            there = inversion.trajectory[steps // 2]
            columns += [images.latents_to_pil(x) for x in (there, back, STRONGER * (back - there))]
        rows += list(zip(*columns, strict=True))
        names += [f"{prompt}, {model}" for prompt in chosen.prompts]
    titles = ["image", *(f"{name}\n{what}" for name in METHODS for what in ("there", "back", "difference"))]
    return figures.grid(rows, titles, names, 72)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.midpoint", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help="PNG file (default: the one in docs)")
    args = parser.parse_args()
    picture(Bench()).save(args.output, optimize=True)
    print(f"picture: {args.output}")


if __name__ == "__main__":
    main()
