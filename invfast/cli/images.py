"""invert, reconstruct, compare: what is done with images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from invfast.cli.base import (
    Device,
    Dtype,
    Guidance,
    Images,
    Json,
    Model,
    Prompts,
    Runtime,
    Seed,
    Size,
    Steps,
    err,
    guarded,
    load_model,
    result,
    stop_if_asked,
)


@guarded
def invert(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.safetensors, one an image.")],
    model: Model = "",
    method: Annotated[str, typer.Option(help="auto, ddim, warm_start, ... (`invfast doctor` lists them).")] = "auto",
    steps: Steps = 50,
    prompt: Prompts = ("",),
    guidance: Guidance = 1.0,
    size: Size = None,
    batch: Annotated[int, typer.Option(min=1, help="Images run at once, as far as they share a size.")] = 1,
    dtype: Dtype = None,
    seed: Seed = 23530,
    device: Device = None,
    runtime: Runtime = "auto",
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Keep the latents of every step, which some edits need.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the noise of each image and save it: invfast invert cat.png dog.png -o noise"""
    import torch

    import invfast
    from invfast.images import load

    targets = _targets(images, output)
    prompts = _prompts(prompt, images)
    sizes = [load(path).size for path in images]  # bad files are known before the model is loaded
    pipe = load_model(model, device)
    rows = []
    output.mkdir(parents=True, exist_ok=True)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("inverting", total=len(images))
        for run in _batches(sizes if size is None else [(size, size)] * len(sizes), batch):
            inversion = invfast.invert(
                pipe,
                [load(path) for path in images[run]],
                prompts[run],
                method=method,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=size,
                width=size,
                dtype=dtype,
                generator=[torch.Generator().manual_seed(seed) for _ in images[run]],
                runtime=runtime,
                save_trajectory=trajectory,
                callback_on_step_end=stop_if_asked,
            )
            for j, path, target in zip(range(len(inversion)), images[run], targets[run], strict=True):
                inversion[j].save(target)
                rows.append(_row(path, target, inversion[j]))
            progress.advance(task, len(inversion))
    result({"command": "invert", "inversions": rows}, [row["file"] for row in rows], as_json)


@guarded
def reconstruct(
    file: Annotated[Path, typer.Argument(help="What `invfast invert` saved.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write (.png).")],
    model: Model = "",
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. (default: the inversion's)")] = None,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Regenerate an image from its inversion: invfast reconstruct noise/cat.safetensors -o cat.png"""
    import invfast

    check_picture(output)
    inversion = invfast.Inversion.load(file)
    found = invfast.reconstruct(
        load_model(model, device),
        inversion,
        guidance_scale=guidance,
        dtype=dtype,
        runtime=runtime,
        callback_on_step_end=stop_if_asked,
    )
    save_picture(found.images[0], output)
    row = {"command": "reconstruct", "image": str(output), "seconds": round(found.stats.seconds, 3)}
    result(row, [str(output)], as_json)


@guarded
def compare(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write (.png).")],
    model: Model = "",
    methods: Annotated[str, typer.Option(help="Names, comma-separated.")] = "ddim,easyinv,warm_start,anderson",
    steps: Steps = 50,
    prompt: Prompts = ("",),
    size: Size = None,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Invert and rebuild images by several methods: invfast compare cat.png --methods ddim,anderson -o grid.png"""
    from invfast import methods as known
    from invfast.compare import compare as run
    from invfast.images import load

    check_picture(output)
    chosen = {name: known.resolve(name) for name in methods.split(",")}
    prompts = _prompts(prompt, images)
    pictures = [load(path) for path in images]
    found = run(
        load_model(model, device),
        pictures,
        prompts,
        chosen,
        names=[path.stem for path in images],
        console=err,
        num_inference_steps=steps,
        height=size,
        width=size,
        dtype=dtype,
        runtime=runtime,
        callback_on_step_end=stop_if_asked,
    )
    save_picture(found.picture, output)
    if not as_json:
        found.print(Console())
    result({"command": "compare", "image": str(output), "rows": found.rows}, [str(output)], as_json)


def _row(path: Path, target: Path, inversion: Any) -> dict[str, Any]:
    stats = inversion.stats
    return {
        "image": str(path),
        "file": str(target),
        "latents": list(inversion.latents.shape[1:]),
        "evaluations": stats.evaluations[0],
        "seconds": round(stats.seconds, 3),
        "runtime": stats.runtime,
        "dtype": str(stats.dtype).removeprefix("torch."),
    }


def _prompts(given: Sequence[str], images: list[Path]) -> list[str]:
    if len(given) not in (1, len(images)):
        raise ValueError(f"{len(given)} prompts for {len(images)} images; give one for all, or one an image")
    return list(given) * (len(images) if len(given) == 1 else 1)


def _batches(sizes: list[tuple[int, int]], batch: int) -> Iterator[slice]:
    """Runs of neighbours of one size, at most `batch` long."""
    start = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sizes[end] != sizes[start] or end - start == batch:
            yield slice(start, end)
            start = end


def _targets(images: list[Path], output: Path) -> list[Path]:
    targets = [output / f"{path.stem}.safetensors" for path in images]
    if len(set(targets)) < len(targets):
        raise ValueError("two images share a file name without its ending; their results would overwrite each other")
    return targets


def check_picture(path: Path) -> None:
    """Before anything is computed, which would be lost."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG; {str(path)!r} does not end in .png")


def save_picture(picture: Any, path: Path) -> None:
    from io import BytesIO

    from invfast.inversion import write_atomically

    content = BytesIO()
    picture.save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
