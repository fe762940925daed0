"""The table of PIE-Bench: means over the images of every inversion and editor, in the scales of its paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import markdown
from benchmarks.accuracy.store import Row


class Column(NamedTuple):
    """A figure: how it is called, times what, how many digits, and the network's metric it comes from."""

    head: str
    scale: float
    digits: int
    metric: str | None = None


COLUMNS = {
    "structure_distance": Column("structure distance, 10⁻³", 1e3, 2, "structure distance"),
    "psnr": Column("background PSNR", 1, 2),
    "psnr_alone": Column("of its pixels alone", 1, 2),
    "lpips": Column("LPIPS, 10⁻³", 1e3, 2, "LPIPS"),
    "mse": Column("MSE, 10⁻⁴", 1e4, 2),
    "mse_alone": Column("of its pixels alone", 1e4, 2),
    "ssim": Column("SSIM, 10⁻²", 1e2, 2),
    "psnr_inside": Column("inside: PSNR", 1, 2),
    "lpips_inside": Column("LPIPS, 10⁻³", 1e3, 2, "LPIPS"),
    "mse_inside": Column("MSE, 10⁻⁴", 1e4, 2),
    "ssim_inside": Column("SSIM, 10⁻²", 1e2, 2),
    "clip": Column("CLIP, whole", 1, 2, "CLIP similarity"),
    "clip_inside": Column("CLIP, edited part", 1, 2, "CLIP similarity"),
}
SHOWN = 5
"""Messages of errors below the table."""


def table(found: Sequence[Row], missing: Mapping[str, str]) -> str:
    """Markdown: a line an editor and inversion, what the figures are, which are missing and why, and what failed.

    Args:
        found: rows with "figures" or an "error".
        missing: metrics that cannot be had here, by name, and why.
    """
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        cells.setdefault((row["editor"], row["inversion"]), []).append(row)
    lines = [_line(cell, group, missing) for cell, group in cells.items()]
    head = ["editor", "inversion", "images", "errors", *(column.head for column in COLUMNS.values())]
    parts = [markdown.table(head, lines), _said(found)]
    if missing:
        parts.append("\n".join(f"- {name}: {why}" for name, why in missing.items()))
    errors = Counter(row["error"] for row in found if "error" in row)
    if errors:
        shown = [f"- {count} rows: {' '.join(message.split())}" for message, count in errors.most_common(SHOWN)]
        more = [f"- and {len(errors) - SHOWN} messages more, in the rows"] if len(errors) > SHOWN else []
        parts.append("\n".join([f"{errors.total()} rows failed:\n", *shown, *more]))
    return "\n\n".join(parts)


def _line(cell: tuple[str, str], group: Sequence[Row], missing: Mapping[str, str]) -> list[str]:
    made = [row["figures"] for row in group if "figures" in row]
    line = [*cell, str(len(made)), str(len(group) - len(made))]
    for name, column in COLUMNS.items():
        values = [each[name] for each in made if each.get(name) is not None]
        if column.metric in missing:
            line.append("missing")
        else:
            line.append(f"{column.scale * sum(values) / len(values):.{column.digits}f}" if values else "")
    return line


def _said(found: Sequence[Row]) -> str:
    """What the means are of."""
    made = [row["figures"] for row in found if "figures" in row]
    equal = sum(each["mse"] == 0 for each in made)
    text = (
        "Means over images. Background and inside are outside of the mask and in it; as published, the other part is "
        "black in both images and counts as equal."
    )
    return f"{text} {equal} edits have no difference in the background, and no PSNR there." if equal else text
