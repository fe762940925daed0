"""batch: every image of a folder, list or table, whatever happens on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invfast.cli import terminal
from invfast.cli.base import (
    Config,
    Device,
    Dtype,
    Guidance,
    Json,
    Model,
    Runtime,
    Seed,
    Steps,
    announce,
    check_stop,
    guarded,
    result,
    stop_on,
)
from invfast.cli.frames import FitTo, Size, frame_of

if TYPE_CHECKING:
    from invfast.batch import Progress as At
    from invfast.batch import Task

SHOWN = 10
"""Failures that are told; the index has all."""


class OnError(StrEnum):
    skip = "skip"
    stop = "stop"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


def _share(text: str) -> Any:
    from invfast.batch import Share

    try:
        return Share.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Source = Annotated[
    Path,
    typer.Argument(
        exists=True, help="Folder, or a .txt, .csv, .jsonl or .parquet that lists images.", show_default=False
    ),
]
Prompts = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Table (.jsonl, .csv, .parquet) of image and prompt.")
]


@guarded
def batch(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for shards and index; goes on in it.")],
    recursive: Annotated[bool, typer.Option("--recursive", help="The folder's folders too.")] = False,
    prompt: Annotated[str, typer.Option(help="Of images that have none of their own.")] = "",
    prompts: Prompts = None,
    on_error: Annotated[OnError, typer.Option(help="What an image that fails does to the rest.")] = OnError.skip,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    shard: Annotated[
        Any, typer.Option(parser=_share, metavar="K/N", help="This process's part, 3/10; all may share a folder.")
    ] = None,
    size_of_batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Images run at once. (default: what fits, up to 32)", show_default=False),
    ] = None,
    keys: Annotated[
        list[Path] | None,
        typer.Option(
            "--key", exists=True, dir_okay=False, help="Look for this watermark key, keep no inversion; repeatable."
        ),
    ] = None,
    model: Model = "",
    config: Config = "",
    method: Annotated[str, typer.Option(help="auto, ddim, ... or with settings, auto(budget=1.2).")] = "auto",
    steps: Steps = 50,
    guidance: Guidance = 1.0,
    size: Size = None,
    fit: FitTo = None,
    dtype: Dtype = None,
    seed: Seed = 23530,
    device: Device = None,
    runtime: Runtime = "auto",
    engine: Annotated[Engine, typer.Option(help="This process, or actors of a Ray cluster.")] = Engine.local,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster. (default: one of this machine)")] = None,
    actors: Annotated[int, typer.Option(min=1, help="Of the cluster.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Of each actor; 0.5 lets two share one.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Invert every image of a folder or table; what is done is skipped: invfast batch photos -o noise --recursive"""
    from invfast import batch as engines

    if engine is Engine.local and (address is not None or actors > 1 or gpus):
        raise typer.BadParameter("--address, --actors and --gpus are of --engine ray")
    stop_on("SIGTERM", "SIGHUP")
    if keys and size is None and fit is not None:
        raise typer.BadParameter("--fit says how images come to a --size; give one, without it they come to the key's")
    frame = None if keys and size is None else frame_of(model, size, fit)  # keys are for a size of their own
    own = {} if frame is None else {"size": frame.size, "fit": frame.fit}
    how = {"dtype": dtype, "seed": seed, "device": device, "runtime": runtime, "config": config, **own}
    task: Task = engines.Invert(model, method, steps, guidance, **how)
    if keys:
        from invfast.watermark import load_key

        task = engines.Detect(tuple(load_key(path) for path in keys), task)
    runner = engines.Ray(address, actors, gpus) if engine is Engine.ray else None
    captions = engines.captions(prompts) if prompts else {}
    announce(model)
    at = engines.Progress()
    try:
        with _shown(at) as check, redirect_stdout(sys.stderr):  # Ray prints where it likes
            engines.run(
                source,
                output,
                task,
                recursive=recursive,
                prompt=prompt,
                prompts=captions,
                batch=size_of_batch,
                shard=shard,
                on_error=on_error.value,
                retry=retry,
                runner=runner,
                progress=at,
                check=check,
            )
    except KeyboardInterrupt:
        terminal.note(f"{at.before + at.done} of {at.images} images are done; the same command goes on from there")
        raise
    _tell(at)
    result(_report(at, output), [str(at.index)], as_json)
    if at.failed:
        raise typer.Exit(1)


@contextmanager
def _shown(at: At) -> Iterator[Callable[[], None]]:
    """Shows how far a run is while its `check` is called: a bar on a terminal, else lines in between."""
    if not terminal.console().is_terminal:
        said = [time.monotonic()]

        def line() -> None:
            check_stop()
            if time.monotonic() - said[0] >= terminal.EVERY:
                said[0] = time.monotonic()
                terminal.note(_line(at))

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.console(), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def moved() -> None:
            check_stop()
            reading = at.began is None
            named = "reading" if reading else f"inverting, {at.failed} failed"
            count = at.read if reading else at.through
            bar.update(task, description=named, completed=count, total=at.images)

        yield moved


def _line(at: At) -> str:
    """How far a run is, and how long it will take at the rate so far."""
    if at.began is None:
        return f"{at.read} of {at.images} images read"
    rate = at.done / at.seconds if at.seconds else 0.0
    more = f", {(at.images - at.through) / rate / 60:.0f} min left" if rate else ""
    return f"{at.through} of {at.images} images, {at.failed} failed, {rate:.2f} a second{more}"


def _tell(at: At) -> None:
    """What a reader should know beside the result."""
    if at.left:
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(at.left.items()))
        terminal.note(f"left out, for they are no images: {kinds}")
    for name, error in list(at.errors.items())[:SHOWN]:
        terminal.error(f"failed: {name}: {error}")
    if at.failed > SHOWN:
        terminal.error(f"and {at.failed - SHOWN} more, see {at.index}")
    said = f"{at.before + at.done} of {at.images} images are done, {at.done} in this run; {at.failed} failed"
    terminal.note(said)


def _report(at: At, output: Path) -> dict[str, Any]:
    return {
        "command": "batch",
        "output": str(output),
        "index": str(at.index),
        "images": at.images,
        "before": at.before,
        "done": at.done,
        "failed": [{"image": name, "error": error} for name, error in at.errors.items()],
        "seconds": round(at.seconds, 3),
    }
