"""Tables and a bar chart of the rows: python -m benchmarks.report; --write also puts them into README and docs.

Each suite has a file of rows and a page with a marked place for its tables.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.rows import FOLDER

ROOT = Path(__file__).parents[1]


def latest(path: Path) -> list[dict[str, Any]]:
    """The newest row of each case and runner; one that was left out does not replace one that ran."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = row["case"], row["runner"]
        if "left out" not in row.get("skipped", "") or key not in found:
            found[key] = row
    return list(found.values())


def tables(rows: Iterable[dict[str, Any]]) -> str:
    """One Markdown table a case: ms a step, times as fast as the baseline, error, share of the measured peak."""
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    parts = []
    for case, group in by_case.items():
        head = "| | ms (p20 to p80) | speed | error | peak |\n|---|---|---|---|---|"
        lines = [f"\n**{case}**, one step, batch 1\n\n{head}"]
        for row in group:
            if "left out" in row.get("skipped", ""):
                continue
            if "skipped" in row:
                lines.append(f"| {row['runner']} | not run: {row['skipped']} | | | |")
                continue
            ms = f"{row['p50'] * 1e3:.0f} ({row['p20'] * 1e3:.0f} to {row['p80'] * 1e3:.0f})"
            speed = "" if math.isnan(row["speed"]) else f"{row['speed']:.2f} x"
            lines.append(f"| {row['runner']} | {ms} | {speed} | {row['error']:.0e} | {row['share_of_peak']:.0%} |")
        parts.append("\n".join(lines))
    return "\n".join(parts) + f"\n\n{_place(group[-1])}\n"


def _place(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{row['machine']}; {versions}; commit {row['commit']}."


def chart(rows: list[dict[str, Any]]) -> Image.Image:
    """Horizontal bars, ms a step, a group a case; each case has a scale of its own."""
    rows = [row for row in rows if "p50" in row]
    font, step, left, width = ImageFont.load_default(13), 20, 250, 420
    cases = list(dict.fromkeys(row["case"] for row in rows))
    canvas = Image.new("RGB", (left + width + 110, (len(rows) + 2 * len(cases)) * step + 12), "white")
    draw, y = ImageDraw.Draw(canvas), 6
    for case in cases:
        group = [row for row in rows if row["case"] == case]
        longest = max(row["p50"] for row in group)
        draw.text((left, y), f"{case}: ms a step", "black", font)
        y += step
        for row in group:
            colour = "#2a78c8" if row["runner"].startswith("invfast") else "#b8b8b8"
            draw.text((left - 8, y + step / 2), row["runner"], "black", font, anchor="rm")
            end = left + max(1, round(width * row["p50"] / longest))
            draw.rectangle((left, y + 3, end, y + step - 3), fill=colour)
            draw.text((end + 6, y + step / 2), f"{row['p50'] * 1e3:.0f}", "black", font, anchor="lm")
            y += step
        y += step
    return canvas


def op_tables(rows: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of all ops: us, times as fast as the reference op, GB/s, share of a copy's and of a step."""
    lines = [
        "| op, shape | | us (p20 to p80) | speed | GB/s | of a copy | of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        us = f"{row['p50'] * 1e6:.1f} ({row['p20'] * 1e6:.1f} to {row['p80'] * 1e6:.1f})"
        step = "" if math.isnan(row["share_of_step"]) else f"{row['share_of_step']:.4%}"
        figures = f"{row['speed']:.2f} x | {row['bytes'] / row['p50'] / 1e9:.1f} | {row['share_of_copy']:.0%} | {step}"
        lines.append(f"| {row['case']} | {row['runner']} | {us} | {figures} |")
    return "\n".join(lines) + f"\n\n{_place(row)}\n"


def write(path: Path, mark: str, text: str) -> None:
    """Puts tables between the marks of a page.

    Raises:
        SystemExit: the page has no such marks.
    """
    content, place = path.read_text(), re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not place.search(content):
        raise SystemExit(f"{path.name} has no <!-- {mark} --> ... <!-- /{mark} --> to write between")
    path.write_text(place.sub(lambda m: m[1] + text + m[2], content))


def main() -> None:
    """Prints the tables; with --write also into README.md, docs/bench.png and docs/kernels.md."""
    found = {name: latest(path) for name in ("runtimes", "ops") if (path := FOLDER / f"{name}.jsonl").exists()}
    texts = {name: (tables if name == "runtimes" else op_tables)(rows) for name, rows in found.items()}
    print(*texts.values(), sep="\n")
    if "--write" in sys.argv[1:]:
        if "runtimes" in found:
            write(ROOT / "README.md", "bench", texts["runtimes"])
            chart(found["runtimes"]).save(ROOT / "docs" / "bench.png")
        if "ops" in found:
            write(ROOT / "docs" / "kernels.md", "ops", texts["ops"])


if __name__ == "__main__":
    main()
