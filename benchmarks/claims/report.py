"""What came of the claims: docs/claims.md, and one HTML page with pictures that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

from PIL import Image

from benchmarks.claims import easyinv, taba
from benchmarks.claims.stated import Claim, Rows
from benchmarks.markdown import table
from invfast.analysis.page import STYLE, number

PAPERS = {
    "There and Back Again": ("2410.23530", taba.CLAIMS),
    "EasyInv": ("2408.05159", easyinv.CLAIMS),
}
HEAD = ("claim", "verdict", "figure", "measured", "command")
WHY = {
    "training": "needs checkpoints of a training from its beginning on",
    "weights": "needs weights that no package brings; `python -m benchmarks.paper --model` and `benchmarks.pie` do it",
}


def lines(claims: Iterable[Claim], rows: Rows) -> list[tuple[str, ...]]:
    """A claim each: what it says, the verdict, its figures, the command that prints them."""
    found = []
    for claim in claims:
        if claim.values is None:
            found.append((claim.says, "not measurable here", "", WHY[claim.study], ""))
            continue
        verdict, measured = judged(claim, rows)
        found.append((claim.says, verdict, claim.figure, measured, f"`python -m benchmarks.claims {claim.study}`"))
    return found


def judged(claim: Claim, rows: Rows) -> tuple[str, str]:
    """Verdict and figures, model by model; what has no rows is left out."""
    held, figures = {}, []
    for model in claim.models:
        own = [row for row in rows if row["study"] == claim.study and row["model"] == model]
        try:
            values = claim.values(own) if own else None
        except LookupError:
            values = None
        if values is None:
            continue
        held[model] = claim.holds(values)
        figures.append(f"{model}: " + ", ".join(f"{name} {_short(value)}" for name, value in values.items()))
    return verdict(held), "; ".join(figures)


def verdict(held: Mapping[str, bool]) -> str:
    """In words."""
    if not held:
        return "not measured"
    if len(set(held.values())) == 1:
        return "confirmed" if all(held.values()) else "not confirmed"
    names = {value: ", ".join(m for m, each in held.items() if each is value) for value in (True, False)}
    return f"confirmed on {names[True]}, not on {names[False]}"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def markdown(rows: Rows) -> str:
    """The tables of docs/claims.md."""
    parts = []
    for paper, (number_, claims) in PAPERS.items():
        parts.append(f"## {paper} (arXiv {number_})\n\n{table(HEAD, lines(claims, rows))}")
    return "\n\n".join(parts)


def shown(study: str, rows: Rows) -> str:
    """A study's rows as tables, one a model and kind of row."""
    parts = []
    kinds = dict.fromkeys((row["model"], row.get("what", "")) for row in rows if row["study"] == study)
    for model, what in kinds:
        own = [row for row in rows if (row["study"], row["model"], row.get("what", "")) == (study, model, what)]
        skipped = ("study", "model", "what", "each", "apart", "machine", "versions", "commit")
        names = [name for name in dict.fromkeys(name for row in own for name in row) if name not in skipped]
        cells = [[_cell(row.get(name)) for name in names] for row in own]
        parts.append(f"{' '.join(each for each in (study, model, what) if each)}\n\n{table(names, cells)}")
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def page(rows: Rows, pictures: Mapping[str, Image.Image | bytes]) -> str:
    """All of it as HTML: verdicts, pictures, every row."""
    parts = []
    for paper, (number_, claims) in PAPERS.items():
        parts.append(f"<h2>{paper} (arXiv {number_})</h2>{_html(HEAD, lines(claims, rows))}")
    parts += [f"<h2>{escape(title)}</h2>{_picture(title, each)}" for title, each in pictures.items()]
    for study in dict.fromkeys(row["study"] for row in rows):
        parts.append(f"<h2>{study}</h2><pre>{escape(shown(study, rows))}</pre>")
    body = "\n".join(parts)
    style = STYLE + "table { font-size: 14px } td { vertical-align: top; text-align: left } pre { overflow-x: auto }"
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Two papers measured again</title>'
        f"<style>{style}</style>\n<h1>What two papers claim, measured on the bundled models</h1>\n{body}</html>\n"
    )


def _html(head: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{name}</th>" for name in head)
    cells = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>\n" for line in found)
    return f"<table><tr>{titles}</tr>\n{cells}</table>"


def _picture(title: str, picture: Image.Image | bytes) -> str:
    if isinstance(picture, Image.Image):
        content = BytesIO()
        picture.save(content, "PNG")
        picture = content.getvalue()
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
