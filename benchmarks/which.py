"""Which model, which method: python -m benchmarks.which. Puts committed rows together; the table: docs/methods.md."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS

Choice = tuple[str, str, str, str, str, str]
CHOICES: tuple[Choice, ...] = (
    ("Stable Diffusion 1.x, 2.x, XL (20 steps)", "accuracy", "20", "DDIM", "auto 70", '`"auto"`'),
    ("the same (50 steps)", "accuracy", "50", "DDIM", "auto 70", '`"auto"`'),
    ("the same, one evaluation more", "accuracy", "50", "DDIM", "auto, budget 1.05", "`Auto(budget=1.05)`"),
    ("SD Turbo, SDXL Turbo, LCM, Lightning (1 step)", "short", "1 steps", "ddim", "auto", '`"auto"`'),
    ("the same (4 steps)", "short", "4 steps", "ddim", "auto", '`"auto"`'),
    ("SD3, FLUX, Qwen-Image, Z-Image (8 steps)", "flow-trained", "8 steps", "ddim", "auto", '`"auto"`'),
    ("the same, one evaluation more", "flow-trained", "8 steps", "ddim", "warm_start", '`"warm_start"`'),
    ("SD3, FLUX, Qwen-Image, Z-Image (28 steps)", "flow-trained", "28 steps", "ddim", "auto", '`"auto"`'),
    ("the same, one evaluation more", "flow-trained", "28 steps", "ddim", "auto, budget 1.05", "`Auto(budget=1.05)`"),
    ("SD3 (50 steps)", "flow-trained", "50 steps", "ddim", "auto", '`"auto"`'),
)
"""Model, rows, case, the plain method, the one taken, and how it is written."""


def found(name: str, case: str, method: str) -> dict[str, Any]:
    """The committed row."""
    each = map(json.loads, (rows.RESULTS / f"{name}.jsonl").read_text().splitlines())
    if name != "accuracy":
        return next(row for row in each if row["case"].startswith(case) and row["method"] == method)
    wanted = {"group": "guidance 1", "name": method, "steps": int(case), "dtype": "float32", "model": "emoji64"}
    return next(row["figures"]["all"] for row in each if wanted.items() <= row.get("case", {}).items())


def figure(row: dict[str, Any]) -> str:
    """PSNR, and what it costs."""
    return f"{row['latent_psnr']:.1f} at {row['evaluations']:.2f}"


def table() -> str:
    """Markdown, a line a choice."""
    lines = [
        [model, written, *(figure(found(name, case, method)) for method in (taken, plain))]
        for model, name, case, plain, taken, written in CHOICES
    ]
    return markdown.table(["sampled like", "take", "dB at evaluations a step", "the plain loop"], lines)


def main() -> None:
    """Writes and prints the table."""
    text = table()
    markdown.write(DOCS / "methods.md", "which", f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
