"""interpolate, compare: several pictures in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from invfast.cli import terminal
from invfast.cli.base import (
    Cell,
    Config,
    Device,
    Dtype,
    Images,
    Json,
    Model,
    Prompts,
    Runtime,
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

NAMES = "ddim,easyinv,warm_start,anderson,auto"


@guarded
def interpolate(
    first: Annotated[Path, typer.Argument(help="What `invfast invert` saved.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another, of the same size, steps and method.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A strip (.png, .pdf, .svg), a .gif, or a folder for single PNGs.")
    ],
    model: Source = None,
    config: Config = "",
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Pictures, both ends among them.")] = 7,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. (default: the inversions')")] = None,
    cell: Cell = None,
    milliseconds: Annotated[int, typer.Option(min=10, help="A picture is shown in a GIF.")] = 150,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Pictures between two inversions: invfast interpolate noise/cat.safetensors noise/owl.safetensors -o strip.png"""
    import invfast
    from invfast.figures import MOVING, SUFFIXES, fitted

    suffix = suffix_of(output, (*SUFFIXES, MOVING)) if output.suffix else ""
    if not suffix:
        check_folder(output)
    a, b = (invfast.Inversion.load(path) for path in (first, second))
    pipe = load_model_of({first: a, second: b}, model, device, config)
    with terminal.progress(pipe, "interpolating"):
        found = invfast.interpolate(
            pipe,
            a,
            b,
            count,
            guidance_scale=guidance,
            dtype=dtype,
            runtime=runtime,
            callback_on_step_end=stop_if_asked,
        )
    pictures = found.images if cell is None else [fitted(picture, cell) for picture in found.images]
    written = _written(pictures, output, suffix, milliseconds)
    row = {"command": "interpolate", "images": written, "pictures": len(pictures)}
    result({**row, "seconds": round(found.stats.seconds, 3)}, written, as_json)


@guarded
def compare(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write (.png, .pdf, .svg).")],
    model: Model = "",
    config: Config = "",
    methods: Annotated[
        str, typer.Option(help='Comma-separated, with settings where they differ: "auto(budget=1.2), ddim".')
    ] = NAMES,
    steps: Steps = 50,
    prompt: Prompts = ("",),
    size: Size = None,
    fit: FitTo = None,
    cell: Cell = 96,
    error_map: Annotated[bool, typer.Option("--error-map", help="Also show where reconstructions are off.")] = False,
    table: Annotated[Path | None, typer.Option(help="Also write the figures (.csv, .tex).", show_default=False)] = None,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Invert and rebuild images by several methods: invfast compare cat.png --methods ddim,anderson -o grid.png"""
    from invfast import figures, tables
    from invfast.compare import compare as run
    from invfast.images import load
    from invfast.methods.spelling import parse, split

    suffix = suffix_of(output, figures.SUFFIXES)
    of_table = None if table is None else suffix_of(table, tables.SUFFIXES, "tables")
    chosen = {name: parse(name) for name in split(methods)}
    prompts = one_each(prompt, images)
    pictures = [load(path) for path in images]
    frame = frame_of(model, size, fit, (picture.size for picture in pictures))
    pictures = pictures if frame is None else [frame(picture) for picture in pictures]
    pipe = load_model(model, device, config)
    with terminal.progress(pipe, "comparing", 2 * len(chosen)):  # up and down
        found = run(
            pipe,
            pictures,
            prompts,
            chosen,
            names=[path.stem for path in images],
            cell=cell,
            error_map=error_map,
            num_inference_steps=steps,
            height=frame and frame.height,
            width=frame and frame.width,
            dtype=dtype,
            runtime=runtime,
            callback_on_step_end=stop_if_asked,
        )
    write(output, figures.encode(found.picture, suffix))
    written = [str(output)]
    if table is not None:
        write(table, found.table(of_table).encode())
        written.append(str(table))
    if not as_json:
        from rich.console import Console

        found.print(Console())
    more = {} if table is None else {"table": str(table)}
    result({"command": "compare", "image": str(output), **more, "rows": found.rows}, written, as_json)


def _written(pictures: list[Any], output: Path, suffix: str, milliseconds: int) -> list[str]:
    """The files of an interpolation: one, or one a picture in a folder."""
    from invfast.figures import encode

    if suffix:
        write(output, encode(pictures, suffix, milliseconds))
        return [str(output)]
    digits = len(str(len(pictures) - 1))
    paths = [output / f"{j:0{digits}}.png" for j in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        write(path, encode(picture, ".png"))
    return [str(path) for path in paths]
