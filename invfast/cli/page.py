"""app: a web page on this machine."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from invfast.cli import terminal
from invfast.cli.base import Device, Runtime, announce, guarded, stop_on

Models = Annotated[
    list[str],
    typer.Option("--model", help="Folder of a diffusers pipeline, or a hub id; may be repeated. (default: bundled)"),
]


@guarded
def app(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    model: Models = (),
    device: Device = None,
    runtime: Runtime = "auto",
) -> None:
    """Invert, edit and compare images on a web page of this machine: invfast app"""
    from invfast.app.models import Models
    from invfast.app.server import LOCAL, check_free, serving

    check_free(host, port)  # before a model is loaded
    for name in model or ("",):
        announce(name)
    models = Models(model, device, closed=host not in LOCAL)
    models.get(None)
    terminal.loaded()
    stop_on("SIGTERM", "SIGHUP")
    with serving(models, host, port, runtime) as url:
        if models.closed:
            terminal.warning(f"everyone who reaches {host} over the network can use this page and this machine for it")
        print(url, flush=True)
        terminal.note("Ctrl-C ends it")
        threading.Event().wait()
