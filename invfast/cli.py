"""The command line: invert, reconstruct, compare, doctor. Results on stdout, everything else on stderr.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

app = typer.Typer(
    help="Invert images through diffusion models: find the noise a pipeline regenerates them from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)

Images = Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.", show_default=False)]
Model = Annotated[str, typer.Option(help="Folder of a diffusers pipeline, or a hub id. (default: the bundled model)")]
Steps = Annotated[int, typer.Option(help="Steps of the grid.")]
Prompt = Annotated[str, typer.Option(help="What the images show, as the model would be told.")]
Guidance = Annotated[float, typer.Option(help="Guidance scale; inversion wants 1.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64. (default: the model's)")]
Seed = Annotated[int, typer.Option(help="For methods that draw noise.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. (default: cuda where there is one)")]
Runtime = Annotated[str, typer.Option(help="Where the network runs: auto or eager.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a command whose known failures end with a message and exit code 1."""

    @app.command()
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: err.print(
                    f"warning: {message}", style="yellow", markup=False
                )
                function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("interrupted", style="red")
            sys.stdout.flush()
            os._exit(130)  # everything is unwound by now; tearing torch down would take a second more
        except (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            if os.environ.get("INVFAST_TRACEBACK"):
                raise
            err.print(f"error: {error}", style="red", markup=False, highlight=False)
            raise typer.Exit(1) from None

    return wrapped


@command
def invert(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for NAME.safetensors, one an image.")],
    model: Model = "",
    method: Annotated[
        str, typer.Option(help="ddim, warm_start, anderson, ... (`invfast doctor` lists them).")
    ] = "ddim",
    steps: Steps = 50,
    prompt: Prompt = "",
    guidance: Guidance = 1.0,
    dtype: Dtype = None,
    seed: Seed = 0,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Find the noise of each image and save it: invfast invert cat.png dog.png -o noise --method warm_start"""
    import torch

    import invfast
    from invfast.images import load

    targets = _targets(images, output)
    pictures = [load(path) for path in images]  # a bad file is known before the model is loaded
    pipe = _load(model, device)
    rows = []
    output.mkdir(parents=True, exist_ok=True)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("inverting", total=len(images))
        for path, picture, target in zip(images, pictures, targets, strict=True):
            inversion = invfast.invert(
                pipe,
                picture,
                prompt,
                method=method,
                num_inference_steps=steps,
                guidance_scale=guidance,
                dtype=dtype,
                generator=torch.Generator().manual_seed(seed),
                runtime=runtime,
            )
            inversion.save(target)
            stats = inversion.stats
            rows.append(
                {
                    "image": str(path),
                    "file": str(target),
                    "latents": list(inversion.latents.shape[1:]),
                    "evaluations": stats.evaluations[0],
                    "seconds": round(stats.seconds, 3),
                    "runtime": stats.runtime,
                    "dtype": str(stats.dtype).removeprefix("torch."),
                }
            )
            progress.advance(task)
    _result({"command": "invert", "inversions": rows}, [row["file"] for row in rows], as_json)


@command
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

    inversion = invfast.Inversion.load(file)
    found = invfast.reconstruct(_load(model, device), inversion, guidance_scale=guidance, dtype=dtype, runtime=runtime)
    _save_picture(found.images[0], output)
    row = {"command": "reconstruct", "image": str(output), "seconds": round(found.stats.seconds, 3)}
    _result(row, [str(output)], as_json)


@command
def compare(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write (.png).")],
    model: Model = "",
    methods: Annotated[str, typer.Option(help="Names, comma-separated.")] = "ddim,easyinv,warm_start,anderson",
    steps: Steps = 50,
    prompt: Prompt = "",
    size: Annotated[int | None, typer.Option(help="Side to resize to, in pixels. (default: the images' own)")] = None,
    dtype: Dtype = None,
    device: Device = None,
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Invert and rebuild images by several methods: invfast compare cat.png --methods ddim,anderson -o grid.png"""
    from invfast import methods as known
    from invfast.compare import compare as run
    from invfast.images import load

    chosen = {name: known.resolve(name) for name in methods.split(",")}
    pictures = [load(path) for path in images]
    found = run(
        _load(model, device),
        pictures,
        [prompt] * len(pictures),
        chosen,
        names=[path.stem for path in images],
        console=err,
        num_inference_steps=steps,
        height=size,
        width=size,
        dtype=dtype,
        runtime=runtime,
    )
    _save_picture(found.picture, output)
    if not as_json:
        found.print(Console())
    _result({"command": "compare", "image": str(output), "rows": found.rows}, [str(output)], as_json)


@command
def doctor(as_json: Json = False) -> None:
    """What there is on this machine, and why something is not: versions, devices, runtimes, methods."""
    import torch

    from invfast import methods, runtimes

    names = ("invfast", "torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "torchmetrics")
    report = {
        "command": "doctor",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "devices": {
            "cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "runtimes": {name: runtime.unavailable() or "available" for name, runtime in runtimes.RUNTIMES.items()},
        "metrics": _importable("torchmetrics", "eval"),
        "methods": {name: repr(method) for name, method in methods.METHODS.items()},
    }
    lines = [f"python {report['python']}"]
    lines += [f"{name} {version or 'not installed'}" for name, version in report["versions"].items()]
    lines += [f"device {name}: {what or 'none'}" for name, what in report["devices"].items()]
    lines += [f"runtime {name}: {state}" for name, state in report["runtimes"].items()]
    lines += [f"metrics: {report['metrics']}"]
    lines += [f"method {name}: {what}" for name, what in report["methods"].items()]
    _result(report, lines, as_json)


def main() -> None:
    """The console script."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app()


def _targets(images: list[Path], output: Path) -> list[Path]:
    targets = [output / f"{path.stem}.safetensors" for path in images]
    if len(set(targets)) < len(targets):
        raise ValueError("two images share a file name without its ending; their results would overwrite each other")
    return targets


def _load(model: str, device: str | None) -> Any:
    """The bundled pipeline, one in a folder, or one of the hub; only the last may touch the network."""
    import diffusers
    import torch
    import transformers

    from invfast import demo

    if not err.is_terminal:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    if not model:
        pipe = demo.load_pipeline()
    else:
        local = Path(model).exists()
        if not local:
            err.print(f"loading {model} from the hub or its cache")
        pipe = diffusers.DiffusionPipeline.from_pretrained(model, local_files_only=local)
    pipe.set_progress_bar_config(file=sys.stderr, disable=not err.is_terminal)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _save_picture(picture: Any, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG; {str(path)!r} does not end in .png")
    from io import BytesIO

    from invfast.inversion import write_atomically

    content = BytesIO()
    picture.save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def _result(report: dict[str, Any], lines: list[str], as_json: bool) -> None:
    print(json.dumps(report) if as_json else "\n".join(lines))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _importable(name: str, extra: str) -> str:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f'unavailable: {error} (pip install "invfast[{extra}]")'
    return "available"
