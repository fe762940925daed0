"""Rows as JSON lines, each written once and to the disk: a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.rows import place
from invfast.files import write_atomically

SCHEMA = 2
"""Raised when figures change their meaning, or a method its numbers: old rows are then measured again."""
Row = dict[str, Any]


def key(settings: dict[str, Any], weights: str, images: str) -> str:
    """What a row is known by: a digest of settings, weights, images and schema."""
    text = json.dumps([SCHEMA, settings, weights, images], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def read(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file; a last line that was cut off is left out.

    Raises:
        ValueError: another line is no JSON.
    """
    found, lines = [], path.read_text().split("\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # a whole row ends with a newline
                break
            raise ValueError(f"line {number} of {str(path)!r} is damaged ({error}); remove it or the file") from error
    return found


def keep(path: Path, keys: Iterable[str]) -> list[Row]:
    """The rows that are still asked for; the file is rewritten without the others, and without a line cut off."""
    wanted = set(keys)
    found = [row for row in read(path) if row.get("key") in wanted]
    runs = {row["run"] for row in found}
    found = [row for row in read(path) if "place" in row and row["run"] in runs] + found
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(_line(row) for row in found).encode())
    return found


def append(path: Path, row: Row) -> None:
    """Adds a row in one write, and waits until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, _line(row).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin(path: Path, rows: Iterable[Row]) -> int:
    """The number of a new run, whose machine, versions and commit become a row of their own."""
    run = 1 + max((row["run"] for row in rows), default=0)
    append(path, {"run": run, "place": place()})
    return run


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"
