"""The index of a folder of results: one row a name; and the log, one line an image while it runs.

`index.parquet` where there is pyarrow, else `index.jsonl`. It is made of the shards and can be lost: what it lacks is
read from them. The log is for people and for `tail -f`; nothing is read from it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from invfast import plain
from invfast.batch import parquet, shards
from invfast.files import write_atomically

COLUMNS = ("name", "id", "prompt", "file", "row", "error", "seconds", "stats")
"""Of a row: the image's name, its id, its prompt, the shard and the place in it, or what went wrong; seconds of its
chunk over the images of that; what the task says of it."""
PARQUET, JSONL, ABOUT = "index.parquet", "index.jsonl", "batch.json"
HALF = re.compile(
    r"\.(index\.parquet|index\.jsonl|batch\.json|chunks\.parquet|[0-9a-f]+\.safetensors)\.[0-9a-f]{8}", re.ASCII
)
"""How `write_atomically` names what lies here until it is whole; other hidden files are the user's."""
STALE = 3600.0
"""Seconds after which a temporary file is one that a kill left."""

Row = dict[str, Any]
logger = logging.getLogger("invfast")


@dataclass(frozen=True)
class Known:
    """What a folder holds: the row of each name, and of each id, whatever its name is now."""

    names: dict[str, Row]
    ids: dict[str, Row]


def read(folder: Path) -> Known:
    """All rows: the index's, as far as their shards are there, and those of shards that it does not have.

    Where both name an image the index is right, but for shards that were written after it.
    """
    stored = _stored(folder)
    there = {file for file in {row["file"] for row in stored} if file is None or shards.opens(folder, file)}
    listed = [row for row in stored if row["file"] in there]
    names, ids = {row["name"]: row for row in listed}, {}
    written = max((path.stat().st_mtime_ns for path in _files(folder)), default=0)
    others = list(shards.rows(folder, {row["file"] for row in listed}))
    others.sort(key=lambda row: row["written"])
    for row in others:
        for each in of_names(row, row["names"]):
            if each["name"] not in names or row["written"] > written:
                names[each["name"]] = each
    for row in (*listed, *others):
        if row["id"] is not None and (row["id"] not in ids or row["error"] is None):
            ids[row["id"]] = row
    return Known(names, ids)


def of_names(row: Mapping[str, Any], names: Iterable[str]) -> list[Row]:
    """The rows of an index for what is stored once."""
    return [{**{column: row.get(column) for column in COLUMNS}, "name": name} for name in names]


def write(folder: Path, rows: Mapping[str, Row]) -> Path:
    """Writes the index, these rows in place of those of the same names; other processes' rows stay."""
    with lock(folder):
        every = {**read(folder).names, **rows}
        found = [every[name] for name in sorted(every)]
        name, other = (PARQUET, JSONL) if parquet.installed() else (JSONL, PARQUET)
        lines = "".join(json.dumps(row) + "\n" for row in found)
        content = parquet.dumps(found, COLUMNS) if name == PARQUET else lines.encode()
        write_atomically(folder / name, content)
        (folder / other).unlink(missing_ok=True)
    return folder / name


def begin(folder: Path, configuration: Mapping[str, Any], given: Iterable[Path] = ()) -> None:
    """Makes the folder one of results of this configuration.

    Args:
        folder: there or not.
        configuration: the task's.
        given: files that are read; none of them may be one that is written here.

    Raises:
        ValueError: it holds those of another, names what differs; or files that are not ours and would be replaced.
        NotADirectoryError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"results go to a folder, and {str(folder)!r} is a file")
    path = folder / ABOUT
    own = [] if path.exists() else [folder / name for name in (PARQUET, JSONL, shards.FOLDER)]
    strange = [each for each in (*own, *given) if each.exists() and (each in own or each.resolve() in _written(folder))]
    if strange:
        raise ValueError(f"{str(strange[0])!r} is no result of invfast and would be replaced; take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(dict(configuration)))
    with lock(folder):
        _sweep(folder)
        if not path.exists():
            write_atomically(path, json.dumps({"format": shards.FORMAT, "configuration": settings}, indent=1).encode())
            return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["configuration"]
        differ = sorted(name for name in {*held, *settings} if held.get(name) != settings.get(name))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be used: {error}") from error
    if differ:
        said = ", ".join(f"{name}={held.get(name)!r}, now {settings.get(name)!r}" for name in differ)
        raise ValueError(f"{str(folder)!r} holds results made with {said}; take another folder, or the same settings")


def _written(folder: Path) -> list[Path]:
    return [(folder / name).resolve() for name in (PARQUET, JSONL, ABOUT)]


def lock(folder: Path) -> FileLock:
    """Of what processes that share a folder write there together."""
    return FileLock(folder / ".lock")


class Log:
    """One line an image, there as soon as it is said."""

    def __init__(self, path: Path) -> None:
        # Unbuffered and appended: a line is one write, which a kill leaves whole or away.
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        line = {"time": round(time.time(), 3), **row}
        self._file.write(json.dumps(line).encode() + b"\n")


def _stored(folder: Path) -> list[Row]:
    """The rows of the index as it was written last; none where there is none, or nothing to read it with."""
    try:
        if (folder / PARQUET).exists() and parquet.installed():
            found = parquet.loads(folder / PARQUET)
        elif (folder / JSONL).exists():
            found = [json.loads(line) for line in (folder / JSONL).read_text(encoding="utf-8").splitlines()]
        else:
            return []
        plain.check(found, list[dict], "its rows")
        return [{column: row[column] for column in COLUMNS} for row in found]
    except PermissionError:
        raise
    except (KeyError, OSError, RecursionError, ValueError) as error:  # pyarrow says so by OSError too
        logger.warning("the index of %r cannot be used, it is made anew of the shards: %s", str(folder), error)
        return []


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in (PARQUET, JSONL) if (folder / name).exists()]


def _sweep(folder: Path) -> None:
    """Removes what a kill left half written, which another process would have finished by now."""
    before = time.time() - STALE
    for path in (*folder.glob(".*"), *(folder / shards.FOLDER).glob(".*")):
        try:
            if HALF.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < before:
                os.unlink(path)
        except FileNotFoundError:
            pass  # another process's, finished in between
