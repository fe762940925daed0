"""Tables and a bar chart of the newest rows: python -m benchmarks.report; --write also puts them into docs.

Each suite has a file of rows and a page with a marked place for its tables; --write commits the rows beside them.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks import rows

ROOT = Path(__file__).parents[1]


def tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table a case: ms a step, times as fast as the baseline, error, share of the peak, memory."""
    parts = []
    for case, group in _by_case(found).items():
        head = "| | ms (p20 to p80) | speed | error | peak | own GiB |\n|---|---|---|---|---|---|"
        lines = [f"\n**{case}**, batch 1\n\n{head}"]
        for row in group:
            if "skipped" in row:
                lines.append(f"| {row['runner']} | not run: {row['skipped']} | | | | |")
                continue
            ms = f"{row['p50'] * 1e3:.0f} ({row['p20'] * 1e3:.0f} to {row['p80'] * 1e3:.0f})"
            speed = "" if math.isnan(row["speed"]) else f"{row['speed']:.2f} x"
            own = f"{row['own_gib']:.1f}" if "own_gib" in row else ""
            figures = f"{speed} | {row['error']:.0e} | {row['share_of_peak']:.0%} | {own}"
            lines.append(f"| {row['runner']} | {ms} | {figures} |")
        parts.append("\n".join(lines) + f"\n\n{_place(group[-1])}\n")
    return "\n".join(parts)


def _place(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    note = f" {row['note']}" if "note" in row else ""
    return f"{row['machine']}; {versions}; commit {row['commit']}.{note}"


def chart(found: list[dict[str, Any]]) -> Image.Image:
    """Horizontal bars, ms a step, a group a case; each case has a scale of its own."""
    ran = [row for row in found if "p50" in row]
    font, step, left, width = ImageFont.load_default(13), 20, 250, 420
    cases = list(dict.fromkeys(row["case"] for row in ran))
    canvas = Image.new("RGB", (left + width + 110, (len(ran) + 2 * len(cases)) * step + 12), "white")
    draw, y = ImageDraw.Draw(canvas), 6
    for case in cases:
        group = [row for row in ran if row["case"] == case]
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


def op_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of all ops: us, times as fast as the reference op, GB/s, share of a copy's and of a step.

    What a row does not say stays empty.
    """
    lines = [
        "| op, shape | | us (p20 to p80) | speed | GB/s | of a copy | of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        if "skipped" in row:
            lines.append(f"| {row['case']} | {row['runner']} | not run: {row['skipped']} | | | | |")
            continue
        spread = f" ({row['p20'] * 1e6:.1f} to {row['p80'] * 1e6:.1f})" if "p20" in row else ""
        us = f"{row['p50'] * 1e6:.1f}{spread}"
        speed, share, step = (
            _figure(row.get(name, math.nan), form)
            for name, form in (("speed", ".2f"), ("share_of_copy", ".0%"), ("share_of_step", ".4%"))
        )
        figures = f"{speed and speed + ' x'} | {row['bytes'] / row['p50'] / 1e9:.1f} | {share} | {step}"
        lines.append(f"| {row['case']} | {row['runner']} | {us} | {figures} |")
    return "\n".join(lines) + f"\n\n{_place(row)}\n"


CALL_COLUMNS = (
    "",
    "ms an image and step (p20 to p80)",
    "of them the loop",
    "speed",
    "beside reduce-overhead",
    "evaluations",
    "error",
    "peak",
    "own GiB",
)
SHORT = (
    "diffusers eager",
    "diffusers torch.compile",
    "diffusers torch.compile reduce-overhead, channels_last",
    "invfast eager",
    "invfast compile",
    "invfast compile, auto 1.05",
)
"""Runners of whole calls that docs/speed.md has."""


def call_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table a case of whole calls on a GPU; what no row says has no column."""
    parts = []
    for case, group in _by_case(found).items():
        table = _filled(CALL_COLUMNS, [_call(row) for row in group])
        parts.append(f"\n**{case}**\n\n{table}\n\n{_place(group[-1])}\n")
    return "\n".join(parts)


def short_call_tables(found: Iterable[dict[str, Any]]) -> str:
    """Of whole calls on SD1.5 one image's, of some runners time and speed alone."""
    parts = []
    for case, group in _by_case(found).items():
        ran = [row for row in group if row["runner"] in SHORT and "p50" in row]
        if not ran or not case.startswith("SD1.5 512 px, batch 1,"):
            continue
        table = _filled((case, "ms a step", "", "speed"), [_call(row)[:4] for row in ran], (0, 1, 3))
        parts.append(f"{table}\n\n{_place(ran[-1])}\n")
    return "\n".join(parts)


def _call(row: dict[str, Any]) -> list[str]:
    """The cells of a row, as CALL_COLUMNS has them."""
    if "skipped" in row:
        return [row["runner"], f"not run: {row['skipped']}", *[""] * (len(CALL_COLUMNS) - 2)]
    step = 1e3 / row["steps"] / row["batch"]
    ms = f"{row['p50'] * step:.2f}" if "p50" in row else ""
    spread = f" ({row['p20'] * step:.2f} to {row['p80'] * step:.2f})" if "p20" in row else ""
    loop = row.get("loop", math.nan) * step
    formats = {"speed": ".2f", "speed_graphs": ".2f", "evaluations": ".4g", "error": ".0e", "share_of_peak": ".0%"}
    figures = [_figure(row.get(name, math.nan), form) for name, form in {**formats, "own_gib": ".1f"}.items()]
    return [row["runner"], ms + spread, _figure(loop, ".2f"), *figures]


def _filled(head: Sequence[str], lines: Sequence[Sequence[str]], kept: Sequence[int] | None = None) -> str:
    """A Markdown table of the columns that are kept, by default the first and those with something in them."""
    if kept is None:
        kept = [0, *(j for j in range(1, len(head)) if any(line[j] for line in lines))]
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line[j] for j in kept)} |" for line in (head, rule, *lines))


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _by_case(found: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_case.setdefault(row["case"], []).append(row)
    return by_case


def start_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of a process's start: seconds to its first step, and memory."""
    lines = [
        "| | | imported, s | loaded | first step done | one step | own GiB | with mapped files | conversion |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        seconds = (f"{row[name]:.1f}" for name in ("imported", "loaded", "first_step", "one_step"))
        memory = (f"{row[name]:.1f}" for name in ("own_gib", "resident_gib"))
        conversion = f"{row['conversion_gib']:.1f}" if row["cache"] == "cold" else ""
        lines.append(f"| {' | '.join([row['case'], row['runner'], *seconds, *memory, conversion])} |")
    return "\n".join(lines) + f"\n\n{_place(row)}\n"


def outside_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of what is not the network, by method, of whole calls; empty where there is none.

    Rows without "around" are older: they divide by the loop alone, and do not stand beside these.
    """
    whole = [row for row in found if "around" in row]
    if not whole:
        return ""
    lines = [
        "| method | ms a step of a whole call | outside the network, ms | share | of them around the loop, ms |",
        "|---|---|---|---|---|",
    ]
    for row in whole:
        step, outside, around = (row[name] for name in ("step", "outside", "around"))
        figures = f"{step * 1e3:.1f} | {outside * 1e3:.2f} | {outside / step:.1%} | {around * 1e3:.2f}"
        lines.append(f"| {row['runner']} | {figures} |")
    return "\n".join(lines) + f"\n\n{_place(whole[-1])}\n"


def write(path: Path, mark: str, text: str) -> None:
    """Puts tables between the marks of a page.

    Raises:
        SystemExit: the page has no such marks.
    """
    content, place = path.read_text(), re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not place.search(content):
        raise SystemExit(f"{path.name} has no <!-- {mark} --> ... <!-- /{mark} --> to write between")
    path.write_text(place.sub(lambda m: m[1] + text + m[2], content))


SUITES = (
    ("runtimes", tables, "docs/speed.md", "bench"),
    ("gpu", short_call_tables, "docs/speed.md", "gpu"),
    ("gpu", call_tables, "docs/runtimes.md", "gpu"),
    ("vae", tables, "docs/runtimes.md", "vae"),
    ("start", start_tables, "docs/runtimes.md", "start"),
    ("ops", op_tables, "docs/kernels.md", "ops"),
    ("gpu_ops", op_tables, "docs/kernels.md", "gpu-ops"),
    ("outside", outside_tables, "docs/kernels.md", "outside"),
)
"""A suite, how its rows are shown, on which page, between which marks."""


def main() -> None:
    """Prints the tables; with --write also into their pages, with docs/bench.png and the committed rows."""
    for suite, shown, page, mark in SUITES:
        found = rows.newest(suite)
        text = shown(found) if found else ""
        if not text:
            continue
        print(text)
        if "--write" in sys.argv[1:]:
            rows.write(rows.RESULTS / f"{suite}.jsonl", found)
            write(ROOT / page, mark, text)
            if suite == "runtimes":
                chart(found).save(ROOT / "docs" / "bench.png")


if __name__ == "__main__":
    main()
