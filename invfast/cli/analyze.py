"""analyze: whether the latents of inversions are noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invfast.cli import terminal
from invfast.cli.base import Json, guarded, result

if TYPE_CHECKING:
    from invfast.analysis import Report
    from invfast.inversion import Inversion

Files = Annotated[list[Path], typer.Argument(help="What `invfast invert` saved.", show_default=False)]


@guarded
def analyze(
    files: Files,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A page to write (.html), or a folder for figures (PNG).")
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(help='safetensors file of the true noise: "noise", a row an image in the order of the files.'),
    ] = None,
    plain: Annotated[float, typer.Option(help="Differences in x_0 below which a cell counts as plain.")] = 0.025,
    seed: Annotated[int, typer.Option(help="Of the noise beside, and of permutations.")] = 23530,
    as_json: Json = False,
) -> None:
    """Ask whether latents are noise, beside true noise: invfast analyze noise/*.safetensors -o report.html"""
    from invfast.analysis import analyze as run
    from invfast.analysis import plain_mask

    if output is not None:
        _check_output(output)
    groups = _groups(files)
    true = None if noise is None else _noise(noise, groups)
    reports = {}
    for shape, inversions in groups.items():
        with terminal.status(f"{len(inversions)} files of latents {shape} ..."):
            images = _joined(inversions, "init_latents")
            mask = plain_mask(images, plain) if min(shape[1:]) > 1 else None
            reports[shape] = run(_joined(inversions, "latents"), images, true, mask=mask, seed=seed)
    written = [] if output is None else _write(output, reports)
    if not as_json:
        for report in reports.values():
            _print(report)
    names = [str(path) for path in written]
    groups = [_plain(report) for report in reports.values()]
    result({"command": "analyze", "groups": groups, "files": names}, names, as_json)


def _groups(files: Sequence[Path]) -> dict[tuple[int, ...], list[Inversion]]:
    """Inversions by the shape of their latents, in the order they were given."""
    from invfast.inversion import Inversion

    groups: dict[tuple[int, ...], list[Inversion]] = {}
    for path in files:
        inversion = Inversion.load(path)
        steps = inversion.schedule.num_steps
        if inversion.node < steps:
            terminal.warning(f"{str(path)!r} was interrupted at node {inversion.node} of {steps}; it is not noise yet")
        inversion.trajectory = None  # it may be a hundred times the rest
        groups.setdefault(tuple(inversion.latents.shape[1:]), []).append(inversion)
    return groups


def _joined(inversions: Sequence[Inversion], name: str) -> Any:
    import torch

    return torch.cat([getattr(inversion, name) for inversion in inversions])


def _noise(path: Path, groups: dict[tuple[int, ...], list[Inversion]]) -> Any:
    """The true noise, of files that share a shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"noise file {str(path)!r} does not exist")
    if len(groups) > 1:
        raise ValueError(f"--noise is for files of one shape, these have {sorted(groups)}; analyze one at a time")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"noise file {str(path)!r} is no safetensors file, or damaged: {error}") from error
    if "noise" not in tensors:
        raise ValueError(f"noise file {str(path)!r} has no tensor 'noise', but {sorted(tensors)}")
    return tensors["noise"]


def _check_output(output: Path) -> None:
    """Before anything is computed, which would be lost."""
    from invfast.analysis import figures

    if output.suffix.lower() not in ("", ".html"):
        raise ValueError(f"a page ends in .html and a folder of figures has no ending; got {str(output)!r}")
    if not output.suffix and output.exists() and not output.is_dir():
        raise ValueError(f"{str(output)!r} is to be a folder, and is a file")
    figures.check_installed()


def _write(output: Path, reports: dict[tuple[int, ...], Report]) -> list[Path]:
    from invfast.analysis import figures
    from invfast.analysis.page import page
    from invfast.files import write_atomically

    if output.suffix:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page({_title(each): each for each in reports.values()}).encode())
        return [output]
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for shape, report in reports.items():
        for name, figure in figures.draw(report).items():
            written.append(output / f"{name}-{'x'.join(map(str, shape))}.png")
            figures.save(figure, written[-1])
    return written


def _print(report: Report) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    from invfast.analysis.page import HEAD, cells, notes

    right = {"latents", "noise", "permuted"}
    columns = (Column(name, justify="right" if name in right else "left", no_wrap=True) for name in HEAD[1:])
    table = Table(*columns, title=_title(report), box=SIMPLE_HEAD)  # no subject: it fits into 80 columns
    subjects = [row.subject for row in report.rows]
    for row, following in zip(report.rows, [*subjects[1:], None], strict=True):
        table.add_row(*cells(row)[1:], end_section=row.subject != following)
    Console().print(table)
    for note in notes(report):
        terminal.note(note, "dim")


def _plain(report: Report) -> dict[str, Any]:
    """All but the curves, which are some hundred numbers a figure."""
    return {name: value for name, value in report.as_dict().items() if name != "found"}


def _title(report: Report) -> str:
    return f"{report.n} latents {report.shape}"
