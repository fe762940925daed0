"""`make demo`: the sample images inverted and rebuilt by several methods, as a table and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import transformers
from rich.console import Console

from invfast import demo
from invfast.compare import compare
from invfast.methods import DDIM, Auto, EasyInv, FixedPoint, ForwardStart, Method

METHODS: dict[str, Method] = {
    "DDIM": DDIM(),
    "EasyInv": EasyInv(),
    "forward start": ForwardStart(2),
    "warm start": FixedPoint(1, warm_start="constant"),
    "auto": Auto(),
    "Anderson 3": FixedPoint(3, "anderson"),
}
MORE_METHODS: dict[str, Method] = {
    "averaged 3": FixedPoint(3, "averaged"),
    "warm, linear": FixedPoint(1, warm_start="linear"),
    "Anderson 5": FixedPoint(5, "anderson"),
}
SAMPLES = ("peach", "soccer_ball", "astronaut", "cat", "coffee")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m invfast.demo", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/demo.png"), help="the picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="steps of the grid (%(default)s)")
    parser.add_argument("--all", action="store_true", help="every sample image, and three more methods (minutes)")
    args = parser.parse_args()

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe, samples = demo.load_pipeline(), demo.load_images()
    names, methods = (list(samples), METHODS | MORE_METHODS) if args.all else (list(SAMPLES), METHODS)
    console = Console()
    console.print(f"{len(names)} images of 64 px, {args.steps} steps, guidance 1, float32 on {pipe.device}")
    found = compare(
        pipe,
        [samples[name].image for name in names],
        [samples[name].prompt for name in names],
        methods,
        names=[name.replace("_", " ") for name in names],
        console=console,
        num_inference_steps=args.steps,
    )
    found.print(console)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    found.picture.save(args.output)
    console.print(f"picture: {args.output}", soft_wrap=True)


if __name__ == "__main__":
    main()
