"""PIE-Bench, inversions and editors side by side: python -m benchmarks.pie --data DIR [--model ID].

DIR is the benchmark as its authors give it out (github.com/cure-lab/PnPInversion): mapping_file.json beside
annotation_images/. Without --model the bundled model runs, for which `python -m benchmarks.pie.small DIR` makes a small
set in the same layout. Each image is inverted at guidance 1 and edited at --guidance. Structure distance is DINO's;
PSNR, LPIPS, MSE and SSIM are those outside of the mask and inside. As published both images are multiplied by the part
that is looked at and all pixels count, so a PSNR counts the zeros of the other part as equal pixels; the columns "of
its pixels alone" do not. What needs weights that are not on this machine is missing, and named.

Rows go to --output, one JSON line an image, inversion and editor, each written to the disk as it is made. Stopped or
killed and started again with the same arguments, it goes on where it was and prints the same table. An error is a row
too, counted in the table; --retry makes those again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.pie import layout, learned, run
from benchmarks.pie.table import table
from invfast.cli.base import load_model
from invfast.methods import METHODS

OUTPUT = Path(__file__).parents[2] / "out" / "pie" / "rows.jsonl"


def native(pipe: Any) -> int:
    """Side of the images that a pipeline was trained on, in pixels.

    Raises:
        ValueError: it does not say.
    """
    parts = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    sides = [getattr(part.config, "sample_size", None) for part in parts if part is not None]
    for side in (*sides, getattr(pipe, "default_sample_size", None)):
        if isinstance(side, int):
            return side * getattr(pipe, "vae_scale_factor", 1)
    raise ValueError(f"{type(pipe).__name__} does not say which size it is for; give --size")


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pie", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with mapping_file.json and annotation_images")
    parser.add_argument("--model", default="", help="folder of a diffusers pipeline, or a hub id (default: bundled)")
    parser.add_argument("--inversions", default="ddim,auto", help="names of methods, with commas")
    parser.add_argument(
        "--editors",
        default="prompt,prompt_to_prompt,masactrl,direct",
        help='names of editors, with commas; "direct+prompt_to_prompt" puts Direct around one',
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5, help="of the edits")
    parser.add_argument("--size", type=int, help="side the images are resized to (default: the model's)")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file of rows")
    parser.add_argument("--retry", action="store_true", help="make rows that are errors again")
    found = parser.parse_args(given)
    found.inversions, found.editors = (tuple(text.split(",")) for text in (found.inversions, found.editors))
    for name in found.inversions:
        if name not in METHODS:
            parser.error(f"unknown inversion {name!r}; expected some of {', '.join(METHODS)}")
    for name in found.editors:
        try:
            run.editor(name)
        except ValueError as error:
            parser.error(str(error))
    for name in ("steps", "size", "limit"):
        value = getattr(found, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return found


def main(given: list[str] | None = None) -> None:
    """Makes what rows are missing and prints the table."""
    asked = arguments(given)
    try:
        entries = layout.entries(asked.data, asked.limit)
        pipe = load_model(asked.model, asked.device)
        pipe.set_progress_bar_config(disable=True)
        size, factor = asked.size or native(pipe), getattr(pipe, "vae_scale_factor", 1)
        if size % factor:
            raise ValueError(f"--size must be a multiple of {factor}, which this model's autoencoder divides it by")
        metrics, missing = learned.load(pipe.device)
        grid = run.Grid(asked.inversions, asked.editors, asked.steps, asked.guidance, size, asked.runtime)
        found = run.run(run.Bench(pipe, asked.data, entries, metrics), grid, asked.output, asked.retry)
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to go on")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    said = f"{asked.model or 'the bundled model'}, {asked.steps} steps, guidance {asked.guidance:g}, {size} px"
    print(f"{table(found, missing)}\n\n{said}, {len(entries)} images of {asked.data} on {pipe.device}. {asked.output}")


if __name__ == "__main__":
    main()
