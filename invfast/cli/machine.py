"""doctor, export, cache: what is done with the machine."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from invfast.cli.base import Config, Device, Dtype, Guidance, Json, Model, Runtime, guarded, load_model, result
from invfast.cli.frames import Side


@guarded
def doctor(as_json: Json = False) -> None:
    """What there is on this machine, and why something is not: versions, devices, runtimes, methods."""
    from invfast import doctor

    found = doctor.report()
    result({"command": "doctor", **found}, doctor.lines(found), as_json)


@guarded
def export(
    model: Model = "",
    config: Config = "",
    runtime: Runtime = "auto",
    size: Side = "512",
    batch: Annotated[int, typer.Option(min=1, help="Images run at once.")] = 1,
    guidance: Guidance = 1.0,
    dtype: Dtype = None,
    device: Device = None,
    capability: Annotated[
        int | None,
        typer.Option(help="Of another machine's GPU, 86 for 8.6, with --runtime tensorrt_rtx. (default: this one's)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model's network into the cache ahead of time: invfast export --runtime openvino --size 64"""
    import invfast
    from invfast import runtimes
    from invfast.images import Frame

    frame = Frame(*size)
    if capability is not None:
        runtimes.ahead_of_time(runtime, capability)
    found = invfast.prepare(
        load_model(model, device, config),
        height=frame.height,
        width=frame.width,
        batch_size=batch,
        guidance_scale=guidance,
        runtime=runtime,
        dtype=dtype,
        capability=capability,
    )
    row = {
        "command": "export",
        "runtime": found.runtime,
        "dtype": str(found.dtype).removeprefix("torch."),
        "reason": found.reason,
        "seconds": round(found.seconds, 3),
    }
    said = f"ready on {found.runtime} in {row['dtype']} after {found.seconds:.1f} s ({found.reason})"
    result(row, [said], as_json)


cache = typer.Typer(
    help="The exported networks on disk ($INVFAST_CACHE, or the user's cache folder).", no_args_is_help=True
)


@cache.command(name="ls")
@guarded
def cache_ls(as_json: Json = False) -> None:
    """List them, newest first: invfast cache ls"""
    from invfast.runtimes.cache import Cache

    found = Cache()
    rows: list[dict[str, Any]] = [
        {"key": e.key, "bytes": e.size, "created": round(e.created), "inputs": dict(e.inputs)} for e in found.entries()
    ]
    lines = [_line(row) for row in rows]
    result({"command": "cache ls", "folder": str(found.folder), "entries": rows}, [str(found.folder), *lines], as_json)


@cache.command(name="rm")
@guarded
def cache_rm(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys, as `invfast cache ls` shows them.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """Delete some, or all: invfast cache rm KEY... or invfast cache rm --all"""
    from invfast.runtimes.cache import Cache

    if bool(keys) == everything:
        raise ValueError("name keys (`invfast cache ls` shows them), or pass --all")
    found = Cache()
    gone = [entry.key for entry in found.entries()] if everything else list(keys or ())
    for key in gone:
        found.remove(key)
    result({"command": "cache rm", "removed": gone}, [f"removed {key}" for key in gone], as_json)


def _line(row: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"]))
    what = f"{row['inputs'].get('class', '?')} for {row['inputs'].get('runtime', '?')}"
    return f"{row['key']}  {row['bytes'] / 2**20:7.0f} MiB  {when}  {what}"
