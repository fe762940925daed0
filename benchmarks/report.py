"""Tables and a bar chart of the newest rows: python -m benchmarks.report; --write also puts them into docs.

Each suite has a file of rows and a page with a marked place for its tables; --write commits the rows beside them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS


def tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table a case: ms a step, times as fast as the baseline, error, share of the peak, memory."""
    parts = []
    for case, group in _by_case(found).items():
        lines = []
        for row in group:
            if "skipped" in row:
                lines.append([row["runner"], f"not run: {row['skipped']}", "", "", "", ""])
                continue
            ms = f"{row['p50'] * 1e3:.0f} ({row['p20'] * 1e3:.0f} to {row['p80'] * 1e3:.0f})"
            speed = "" if math.isnan(row["speed"]) else f"{row['speed']:.2f} x"
            own = f"{row['own_gib']:.1f}" if "own_gib" in row else ""
            lines.append([row["runner"], ms, speed, f"{row['error']:.0e}", f"{row['share_of_peak']:.0%}", own])
        table = markdown.table(["", "ms (p20 to p80)", "speed", "error", "peak", "own GiB"], lines)
        parts.append(f"\n**{case}**, batch 1\n\n{table}\n\n{_place(group[-1])}\n")
    return "\n".join(parts)


def _place(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    note = f" {row['note']}" if "note" in row else ""
    return f"{row['machine']}; {versions}; commit {row['commit']}.{note}"


def chart(found: list[dict[str, Any]]) -> Figure:
    """Horizontal bars, ms a step, a panel a case, each with a scale of its own."""
    ran = {case: [row for row in group if "p50" in row] for case, group in _by_case(found).items()}
    ran = {case: group for case, group in ran.items() if group}
    counts = [len(group) for group in ran.values()]
    figure = Figure(figsize=(8, 0.26 * sum(counts) + 0.55 * len(counts)), dpi=100, layout="constrained")
    axes = figure.subplots(len(ran), 1, squeeze=False, gridspec_kw={"height_ratios": counts})[:, 0]
    for ax, (case, group) in zip(axes, ran.items(), strict=True):
        colours = ["#2a78c8" if row["runner"].startswith("invfast") else "#b8b8b8" for row in group]
        bars = ax.barh(range(len(group)), [row["p50"] * 1e3 for row in group], color=colours)
        ax.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        ax.set_yticks(range(len(group)), [row["runner"] for row in group], fontsize=8)
        ax.invert_yaxis()
        ax.set_title(f"{case}: ms a step", loc="left", fontsize=9)
        ax.set_xticks([])
        ax.margins(x=0.08, y=0.01)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def op_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of all ops: us, times as fast as the reference op, GB/s, share of a copy's and of a step.

    What a row does not say stays empty.
    """
    lines = []
    for row in found:
        if "skipped" in row:
            lines.append([row["case"], row["runner"], f"not run: {row['skipped']}", "", "", "", ""])
            continue
        spread = f" ({row['p20'] * 1e6:.1f} to {row['p80'] * 1e6:.1f})" if "p20" in row else ""
        us = f"{row['p50'] * 1e6:.1f}{spread}"
        speed, share, step = (
            _figure(row.get(name, math.nan), form)
            for name, form in (("speed", ".2f"), ("share_of_copy", ".0%"), ("share_of_step", ".4%"))
        )
        figures = [speed and f"{speed} x", f"{row['bytes'] / row['p50'] / 1e9:.1f}", share, step]
        lines.append([row["case"], row["runner"], us, *figures])
    head = ["op, shape", "", "us (p20 to p80)", "speed", "GB/s", "of a copy", "of a step"]
    return f"{markdown.table(head, lines)}\n\n{_place(row)}\n"


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
START_COLUMNS = (
    "",
    "",
    "imported, s",
    "loaded",
    "first step done",
    "one step",
    "own GiB",
    "with mapped files",
    "conversion",
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
        table = markdown.filled(CALL_COLUMNS, [_call(row) for row in group])
        parts.append(f"\n**{case}**\n\n{table}\n\n{_place(group[-1])}\n")
    return "\n".join(parts)


def short_call_tables(found: Iterable[dict[str, Any]]) -> str:
    """Of whole calls on SD1.5 one image's, of some runners time and speed alone."""
    parts = []
    for case, group in _by_case(found).items():
        ran = [row for row in group if row["runner"] in SHORT and "p50" in row]
        if not ran or not case.startswith("SD1.5 512 px, batch 1,"):
            continue
        table = markdown.filled((case, "ms a step", "", "speed"), [_call(row)[:4] for row in ran], (0, 1, 3))
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


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _by_case(found: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_case.setdefault(row["case"], []).append(row)
    return by_case


def start_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of a process's start: seconds to its first step, and memory."""
    lines = []
    for row in found:
        seconds = (f"{row[name]:.1f}" for name in ("imported", "loaded", "first_step", "one_step"))
        memory = (f"{row[name]:.1f}" for name in ("own_gib", "resident_gib"))
        conversion = f"{row['conversion_gib']:.1f}" if row["cache"] == "cold" else ""
        lines.append([row["case"], row["runner"], *seconds, *memory, conversion])
    return f"{markdown.table(START_COLUMNS, lines)}\n\n{_place(row)}\n"


def outside_tables(found: Iterable[dict[str, Any]]) -> str:
    """One Markdown table of what is not the network, by method, of whole calls; empty where there is none.

    Rows without "around" are older: they divide by the loop alone, and do not stand beside these.
    """
    whole = [row for row in found if "around" in row]
    if not whole:
        return ""
    head = ["method", "ms a step of a whole call", "outside the network, ms", "share", "of them around the loop, ms"]
    lines = []
    for row in whole:
        step, outside, around = (row[name] for name in ("step", "outside", "around"))
        figures = (f"{step * 1e3:.1f}", f"{outside * 1e3:.2f}", f"{outside / step:.1%}", f"{around * 1e3:.2f}")
        lines.append([row["runner"], *figures])
    return f"{markdown.table(head, lines)}\n\n{_place(whole[-1])}\n"


SUITES = (
    ("runtimes", tables, "speed.md", "bench"),
    ("gpu", short_call_tables, "speed.md", "gpu"),
    ("gpu", call_tables, "runtimes.md", "gpu"),
    ("vae", tables, "runtimes.md", "vae"),
    ("start", start_tables, "runtimes.md", "start"),
    ("ops", op_tables, "kernels.md", "ops"),
    ("gpu_ops", op_tables, "kernels.md", "gpu-ops"),
    ("outside", outside_tables, "kernels.md", "outside"),
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
            markdown.write(DOCS / page, mark, text)
            if suite == "runtimes":
                chart(found).savefig(DOCS / "bench.png")


if __name__ == "__main__":
    main()
