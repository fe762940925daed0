"""Tables and the Pareto picture, a function of the rows: printed, and put into the documentation for committed rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.accuracy import sections, store, verdicts
from benchmarks.accuracy.picture import picture
from benchmarks.accuracy.store import Row
from benchmarks.markdown import write
from invfast.files import write_atomically

PAGES = {
    "Auto": "auto",
    "DDIM": "ddim",
    "EasyInv": "easyinv",
    "FixedPoint": "fixed_point",
    "ForwardStart": "forward_start",
    "EDICT": "edict",
    "BDIA": "bdia",
    "OBELM": "obelm",
    "NoiseMaps": "noise_maps",
    "ReNoise": "renoise",
    "GNRI": "gnri",
    "NullText": "null_text",
    "PromptTuning": "prompt_tuning",
    "NegativePrompt": "negative_prompt",
    "Direct": "direct",
}
"""The page of each class under docs/methods."""


def report(path: Path, root: Path | None) -> None:
    """Prints all tables and saves the picture: beside the rows, or with `root` into that checkout's documentation.

    Raises:
        ValueError: no rows, or a damaged file.
        SystemExit: a page has no place for what belongs into it.
    """
    every = store.read(path)
    rows = newest(every)
    if not rows:
        raise ValueError(f"no rows in {str(path)!r}; measure first: python -m benchmarks.accuracy")
    text = page(rows, place(every, rows))
    print(text)
    grids = sections.grids(rows)
    folder = path.parent if root is None else root / "docs"
    if grids:
        write_atomically(folder / "pareto.png", picture(rows, grids))
        print(f"picture: {folder / 'pareto.png'}")
    if root is None:
        return
    write(folder / "accuracy.md", "accuracy", _shown(folder) + text)
    if grids:
        write(folder / "methods.md", "accuracy", f"{sections.headline(rows)}\n\n{place(every, rows)}\n")
    for name, content in method_lines(rows).items():
        target = folder / "methods" / f"{name}.md"
        if target.exists():
            write(target, "measured", content)


def _shown(folder: Path) -> str:
    """The pictures that are there."""
    titles = {
        "pareto.png": "Evaluations a step against median latent PSNR",
        "midpoint.png": "Latents half way there and back, of the bundled model and its early checkpoint",
    }
    return "".join(f"![{title}]({name})\n\n" for name, title in titles.items() if (folder / name).exists())


def newest(every: Iterable[Row]) -> list[Row]:
    """The last row of each case, in the order of the first."""
    found = {json.dumps(row["case"], sort_keys=True): row for row in every if "case" in row}
    return list(found.values())


def place(every: Iterable[Row], rows: Sequence[Row]) -> str:
    """Where and with what the rows were measured."""
    runs = {row["run"] for row in rows}
    lines = []
    for row in every:
        if "place" in row and row["run"] in runs:
            at = row["place"]
            versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
            lines.append(f"{at['machine']}; {versions}; commit {at['commit']}.")
    return " ".join(dict.fromkeys(lines))


def page(rows: Sequence[Row], at: str) -> str:
    """Everything the rows say, as Markdown."""
    parts = []
    for title, make in {"What was asked for": verdicts.wanted, **sections.SECTIONS}.items():
        body = make(rows)
        if body:
            parts.append(f"## {title}\n\n{body}")
    return "\n\n".join([*parts, at]) + "\n"


def method_lines(rows: Sequence[Row]) -> dict[str, str]:
    """By page the "Measured" lines of a method: what the tables say of it."""
    found = {}
    for cls, name in PAGES.items():
        mine = [row for row in rows if row["case"]["method"]["class"] == cls and row["case"]["model"] == "emoji64"]
        plain = [row for row in mine if row["case"]["group"] == "guidance 1"]
        guided = [row for row in mine if row["case"]["group"] == "guided" and row["case"]["guidance"] == 1]
        if plain:
            said = f"guidance 1, float32:\n\n{sections.short_table(plain)}"
        elif guided:
            said = f"float32:\n\n{sections.guided_table(guided)}"
        else:
            continue
        # A table ends with an empty line.
        found[name] = f"**Measured** {sections.about(plain or guided)}, {said}\n\n"
    return found
