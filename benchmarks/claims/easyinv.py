"""EasyInv's claims, from committed rows: those of `make accuracy` and of `python -m benchmarks.edits`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks import rows as committed

FIGURES = ("evaluations", "latent_psnr", "psnr_to_vae", "midpoint")


def rows(_: object = None) -> Iterator[dict[str, Any]]:
    """A row a method of a group: all images at N = 50, an early checkpoint, half precision, a white image."""
    for row in _read("accuracy"):
        case = row.get("case", {})
        if "figures" not in row or case.get("group") not in ("guidance 1", "early", "half precision", "white"):
            continue
        figures = next(iter(row["figures"].values()))
        what = f"{case['group']}, {case['model']}, N = {case['steps']}, {case['dtype']}, {case['images']}"
        yield {"what": what, "method": case["name"], **{name: figures[name] for name in FIGURES if name in figures}}
    for row in _read("edits"):
        yield {"what": "edits", "method": f"{row['editor']}, {row['inversion']}", "target": row["target"]}


def _read(name: str) -> list[dict[str, Any]]:
    path = committed.RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
