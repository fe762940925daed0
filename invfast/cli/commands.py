"""The commands as one program. Nothing here or below imports torch before a command runs: help takes no seconds."""

from __future__ import annotations

from typing import Annotated

import typer

from invfast.cli import edits, figures, images, machine, page
from invfast.cli.analyze import analyze
from invfast.cli.batch import batch
from invfast.cli.info import info
from invfast.cli.watermark import watermark

app = typer.Typer(
    help="Invert images through diffusion models: find the noise a pipeline regenerates them from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    images.invert,
    images.reconstruct,
    edits.edit,
    figures.interpolate,
    figures.compare,
    analyze,
    batch,
    info,
    page.app,
    machine.doctor,
    machine.export,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(watermark, name="watermark")
app.add_typer(machine.cache, name="cache")


def _version(asked: bool) -> None:
    if asked:
        from invfast import __version__

        print(f"invfast {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
