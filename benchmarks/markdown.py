"""Markdown tables, and the marked places of docs where they go.

By tabulate, with columns as wide as each cell is: a figure that changes changes one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import DataRow, TableFormat, tabulate

DOCS = Path(__file__).parents[1] / "docs"
ROW = DataRow("| ", " | ", " |")
FORMAT = TableFormat(
    lineabove=None,
    linebelowheader=lambda widths, _: "|" + "---|" * len(widths),
    linebetweenrows=None,
    linebelow=None,
    headerrow=ROW,
    datarow=ROW,
    padding=0,
    with_header_hide=None,
)


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table, its figures as they were formatted."""
    return tabulate(list(lines), head, FORMAT, stralign=None, numalign=None, disable_numparse=True)


def filled(head: Sequence[str], lines: Sequence[Sequence[str]], kept: Sequence[int] | None = None) -> str:
    """A table of the columns that are kept, by default the first and those with something in them."""
    if kept is None:
        kept = [0, *(j for j in range(1, len(head)) if any(each[j] for each in lines))]
    return table([head[j] for j in kept], [[each[j] for j in kept] for each in lines])


def write(path: Path, mark: str, text: str) -> None:
    """Puts tables between the marks of a page.

    Raises:
        SystemExit: the page has no such marks.
    """
    content, place = path.read_text(), re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not place.search(content):
        raise SystemExit(f"{path.name} has no <!-- {mark} --> ... <!-- /{mark} --> to write between")
    path.write_text(place.sub(lambda m: m[1] + text + m[2], content))
