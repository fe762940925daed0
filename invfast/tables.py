"""Rows of figures as files: CSV for machines, LaTeX for papers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

SUFFIXES = (".csv", ".tex")
_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def encode(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], texts: Any, suffix: str) -> str:
    """The content of a file of rows.

    Args:
        rows: the values of each, by name; None where there is none.
        columns: names in their order, and what a table for people calls them.
        texts: (name, value) -> how a table for people writes it.
        suffix: ".csv", with every digit under the columns' names, or ".tex", a tabular with booktabs' rules.

    Raises:
        ValueError: another suffix.
    """
    if suffix.lower() not in SUFFIXES:
        raise ValueError(f"tables are written as {' or '.join(SUFFIXES)}, got {suffix!r}")
    if suffix.lower() == ".csv":
        content = StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if row[name] is None else row[name] for name in columns] for row in rows])
        return content.getvalue()
    lines = [[escaped(title) for title in columns.values()]]
    lines += [[escaped(texts(name, row[name])) for name in columns] for row in rows]
    head, *body = (" & ".join(line) + r" \\" for line in lines)
    kinds = "l" + "r" * (len(columns) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )


def escaped(text: str) -> str:
    """A text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
