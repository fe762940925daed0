"""invert, reconstruct: one image, or many by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from invfast.cli import terminal
from invfast.cli.base import (
    Config,
    Device,
    Dtype,
    Guidance,
    Images,
    Json,
    Model,
    Prompts,
    Runtime,
    Seed,
    Source,
    Steps,
    check_folder,
    guarded,
    load_model,
    load_model_of,
    one_each,
    result,
    stop_if_asked,
    suffix_of,
    write,
)
from invfast.cli.frames import FitTo, Size, frame_of


@guarded
def invert(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.safetensors, one an image.")],
    model: Model = "",
    config: Config = "",
    method: Annotated[
        str, typer.Option(help="auto, ddim, ... (`invfast doctor` lists them), or with settings, auto(budget=1.2).")
    ] = "auto",
    steps: Steps = 50,
    strength: Annotated[
        float, typer.Option(help="How much of the grid is walked, from the image, in (0, 1]; 1 leads to noise.")
    ] = 1.0,
    prompt: Prompts = ("",),
    guidance: Guidance = 1.0,
    size: Size = None,
    fit: FitTo = None,
    encode: Annotated[
        str, typer.Option(help="How images become latents: encoder, or decoder, for pictures the model made.")
    ] = "encoder",
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
    from invfast.methods.spelling import parse

    chosen = parse(method)
    targets = _targets(images, output)
    prompts = one_each(prompt, images)
    sizes = [load(path).size for path in images]  # bad files are known before the model is loaded
    frame = frame_of(model, size, fit, sizes)
    pipe = load_model(model, device, config)
    rows = []
    output.mkdir(parents=True, exist_ok=True)
    runs = list(_batches(sizes if frame is None else [frame.size] * len(sizes), batch))
    with terminal.progress(pipe, "inverting", len(runs)):
        for run in runs:
            inversion = invfast.invert(
                pipe,
                [load(path) if frame is None else frame(load(path)) for path in images[run]],
                prompts[run],
                method=chosen,
                num_inference_steps=steps,
                strength=strength,
                guidance_scale=guidance,
                height=frame and frame.height,
                width=frame and frame.width,
                encode=encode,
                dtype=dtype,
                generator=[torch.Generator().manual_seed(seed) for _ in images[run]],
                runtime=runtime,
                save_trajectory=trajectory,
                callback_on_step_end=stop_if_asked,
            )
            for j, path, target in zip(range(len(inversion)), images[run], targets[run], strict=True):
                inversion[j].save(target)
                rows.append(_row(path, target, inversion[j]))
    result({"command": "invert", "inversions": rows}, [row["file"] for row in rows], as_json)


@guarded
def reconstruct(
    file: Annotated[Path, typer.Argument(help="What `invfast invert` saved.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write (.png).")],
    model: Source = None,
    config: Config = "",
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. (default: the inversion's)")] = None,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Regenerate an image from its inversion: invfast reconstruct noise/cat.safetensors -o cat.png"""
    import invfast
    from invfast.figures import encode

    suffix = suffix_of(output, (".png",))
    inversion = invfast.Inversion.load(file)
    pipe = load_model_of({file: inversion}, model, device, config)
    with terminal.progress(pipe, "rebuilding"):
        found = invfast.reconstruct(
            pipe,
            inversion,
            guidance_scale=guidance,
            dtype=dtype,
            runtime=runtime,
            callback_on_step_end=stop_if_asked,
        )
    write(output, encode(found.images[0], suffix))
    row = {"command": "reconstruct", "image": str(output), "seconds": round(found.stats.seconds, 3)}
    result(row, [str(output)], as_json)


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


def _batches(sizes: list[tuple[int, int]], batch: int) -> Iterator[slice]:
    """Runs of neighbours of one size, at most `batch` long."""
    start = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sizes[end] != sizes[start] or end - start == batch:
            yield slice(start, end)
            start = end


def _targets(images: list[Path], output: Path) -> list[Path]:
    check_folder(output)
    targets = [output / f"{path.stem}.safetensors" for path in images]
    if len(set(targets)) < len(targets):
        raise ValueError("two images share a file name without its ending; their results would overwrite each other")
    return targets
