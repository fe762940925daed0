"""The command line. Results on stdout, everything else on stderr.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import os

import typer

from invfast.cli import edits, figures, images, machine
from invfast.cli.analyze import analyze
from invfast.cli.batch import batch
from invfast.cli.watermark import watermark

app = typer.Typer(
    help="Invert images through diffusion models: find the noise a pipeline regenerates them from.",
    no_args_is_help=True,
    add_completion=False,
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
    machine.doctor,
    machine.export,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(watermark, name="watermark")
app.add_typer(machine.cache, name="cache")


def main() -> None:
    """The console script."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app()
