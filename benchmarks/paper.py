"""EasyInv's table, LPIPS, SSIM, PSNR and time: python -m benchmarks.paper --model ID --images DIR [--captions FILE].

Zhang et al., arXiv 2408.05159: Stable Diffusion 1.4, 2,298 images of COCO 2017 at 512 px, 50 steps, float16, float32;
there the PSNR looks like one of 8-bit differences that wrapped around, so ours is not to be held against it. Without
arguments the bundled model and its sample images stand in, which says so. The VAE round trip is the ceiling of all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from benchmarks import rows
from benchmarks.accuracy import store
from benchmarks.markdown import table
from invfast import adapters, demo, images, invert, metrics, reconstruct
from invfast.cli.base import load_model
from invfast.methods import DDIM, EasyInv, FixedPoint, Method, ReNoise

SD14: dict[str, Method] = {
    "DDIM inversion": DDIM(),
    "ReNoise": ReNoise(),
    "fixed-point iteration": FixedPoint(3),
    "EasyInv": EasyInv(),
}
"""The paper's settings for SD1.4. Its SDXL settings are `EasyInv.sdxl()`: --sdxl."""
SLOW_HALF = "not run: a CPU emulates float16; --dtypes float16 insists"
Lpips = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def lpips() -> tuple[Lpips | None, str]:
    """LPIPS with AlexNet, (B,) from images in [0, 1], and its name; or None and why there is none."""
    try:
        import torchvision  # noqa: F401 (its AlexNet, whose weights come from the hub)
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True)
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"LPIPS left out: {type(error).__name__}: {error}"
    return lambda a, b: network.to(a.device)(a, b).reshape(-1), "LPIPS with AlexNet"


def pictures(folder: Path, captions: Path | None, side: int) -> tuple[list[Image.Image], list[str]]:
    """The images of a folder, cut to squares, and their captions, empty where there are none.

    Raises:
        ValueError: no images there, or captions that cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in images.ENDINGS)
    if not paths:
        raise ValueError(f"no images in {str(folder)!r}")
    texts = {} if captions is None else read_captions(captions)
    if captions is not None and not texts.keys() & {path.name for path in paths}:
        raise ValueError(
            f"no caption in {str(captions)!r} names an image of {str(folder)!r}, such as {paths[0].name!r}"
        )
    cut = [ImageOps.fit(images.load(path), (side, side), Image.Resampling.LANCZOS) for path in paths]
    return cut, [texts.get(path.name, "") for path in paths]


def read_captions(path: Path) -> dict[str, str]:
    """File name to caption, out of {"name.jpg": "caption"} or COCO's captions_*.json, whose first caption counts.

    Raises:
        ValueError: neither.
    """
    try:
        found = json.loads(path.read_text())
        if "annotations" not in found:
            return {str(name): str(text) for name, text in found.items()}
        names = {image["id"]: image["file_name"] for image in found["images"]}
        return {names[each["image_id"]]: each["caption"] for each in reversed(found["annotations"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"captions {str(path)!r} cannot be used ({error}); "
            'expected {"name.jpg": "caption"} or the captions file of COCO'
        ) from error


def measure(
    pipe: Any, method: Method | None, given: Sequence, dtype: str, steps: int, batch: int, metric: Lpips | None
) -> dict[str, float]:
    """Means over the images: lpips (where there is a metric), ssim, psnr, seconds; no method: the VAE alone."""
    model, found, seconds = adapters.resolve(pipe)(pipe), [], 0.0
    cut, texts = given
    for start in range(0, len(cut), batch):
        part, prompts = list(cut[start : start + batch]), list(texts[start : start + batch])
        x = model.encode(part, None, None)
        if method is None:
            rebuilt = model.decode(x)
        else:
            options = {"num_inference_steps": steps, "dtype": dtype}
            inversion = invert(pipe, x, prompts, method=method, **options)
            rebuilt = reconstruct(pipe, inversion, dtype=dtype, output_type="pt").images
            seconds += inversion.stats.seconds
        original = images.to_pixels(part, 1).to(rebuilt) / 2 + 0.5
        figures = [metrics.ssim(rebuilt, original), metrics.psnr(rebuilt, original)]
        found.append(torch.stack([*([metric(rebuilt, original).to(figures[0])] if metric else []), *figures]))
    means = torch.cat(found, 1).mean(1).tolist()
    names = ["lpips", "ssim", "psnr"] if metric else ["ssim", "psnr"]
    return {**dict(zip(names, means, strict=True)), "seconds": seconds / len(cut)}


def line(name: str, dtype: str, figures: dict[str, float] | None) -> list[str]:
    """A row of the table."""
    if figures is None:
        return [name, dtype, SLOW_HALF, "", "", ""]
    cells = [f"{figures[key]:.{digits}f}" if key in figures else "" for key, digits in (("lpips", 3), ("ssim", 3))]
    seconds = f"{figures['seconds']:.2f}" if figures["seconds"] else ""
    return [name, dtype, *cells, f"{figures['psnr']:.2f}", seconds]


def run(args: argparse.Namespace) -> None:
    """Measures, prints the table and appends its rows."""
    pipe = load_model(args.model, args.device)
    pipe.set_progress_bar_config(disable=True)
    if args.images is None:
        samples = list(demo.load_images().values())
        given = [s.image for s in samples], [s.prompt for s in samples]
        print("The bundled model and its 16 sample images of 64 px: not what the paper measured.\n")
    else:
        given = pictures(args.images, args.captions, args.size or pipe.unet.config.sample_size * pipe.vae_scale_factor)
    metric, said = lpips()
    slow = pipe.device.type == "cpu" and args.dtypes is None
    methods = {**SD14, "EasyInv": EasyInv.sdxl()} if args.sdxl else SD14
    lines = [line("VAE round trip", "", measure(pipe, None, given, "", args.steps, args.batch, metric))]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    store.append(args.rows, {"model": args.model or "bundled", "images": len(given[0]), "place": rows.place()})
    for dtype in args.dtypes or ("float16", "float32"):
        for name, method in methods.items():
            skipped = slow and dtype == "float16"
            found = None if skipped else measure(pipe, method, given, dtype, args.steps, args.batch, metric)
            store.append(args.rows, {"method": name, "dtype": dtype, **(found or {"skipped": SLOW_HALF})})
            lines.append(line(name, dtype, found))
            print(f"  {name}, {dtype}: {'skipped' if skipped else 'done'}", file=sys.stderr, flush=True)
    print(table(["", "dtype", "LPIPS", "SSIM", "PSNR", "seconds an image"], lines))
    print(f"\n{len(given[0])} images, {args.steps} steps, guidance 1, on {pipe.device}. {said}. Rows: {args.rows}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="folder of a diffusers pipeline, or a hub id")
    parser.add_argument("--images", type=Path, help="folder of images, COCO's val2017 for instance")
    parser.add_argument("--captions", type=Path, help='{"name.jpg": "caption"}, or COCO\'s captions_val2017.json')
    parser.add_argument("--size", type=int, help="side of the squares (default: the model's own)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1, help="images at once; the paper's time is for one")
    parser.add_argument("--dtypes", nargs="+", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--sdxl", action="store_true", help="EasyInv with the paper's settings for SDXL")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--rows", type=Path, default=Path("out/paper.jsonl"), help="where rows are appended")
    args = parser.parse_args()
    try:
        if args.model and args.images is None:
            raise ValueError("--model needs images to invert: --images DIR")
        if args.captions is not None and args.images is None:
            raise ValueError("--captions are for the files of --images DIR")
        run(args)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
