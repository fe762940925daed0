"""What is to be done: the images of a folder, a list, or a table, by name, with their prompts.

Names are kept relative to what was given, with forward slashes, so `sub/a.png` and `a.png` are two.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invfast.batch import parquet
from invfast.images import ENDINGS

TABLES = (".txt", ".csv", ".jsonl", ".parquet")
IMAGE, PROMPT = ("image", "file_name"), ("prompt", "text")
"""Columns of a table, either name will do; the second is what data sets on the hub call it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source: a file, or row `row` of a parquet file that holds images."""

    name: str
    path: str
    prompt: str | None = None
    row: int | None = None

    def read(self) -> bytes:
        """The image file's content.

        Raises:
            OSError: it cannot be read. ValueError: the row holds no image.
        """
        if self.row is not None:
            return parquet.image(self.path, self.row)
        path = Path(self.path)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ValueError(f"image {self.name!r} is a folder, or something else that is no file")
        return path.read_bytes()


def entries(source: str | Path, recursive: bool = False, but: Path | None = None) -> tuple[list[Entry], dict[str, int]]:
    """The images of a source, in a fixed order, and how many files of a folder are left out, by ending.

    Args:
        source: a folder; a list (.txt), a path a line; a table (.csv, .jsonl) with columns image (or file_name), paths
            relative to the table, and prompt (or text), which may be missing; or a table as .parquet, whose images are
            paths, bytes, or structs of bytes and path.
        recursive: of a folder, its folders too.
        but: a folder that is left out, the results' own.

    Raises:
        FileNotFoundError: no such source.
        ValueError: another ending, a table that cannot be read, a name that comes twice, or no images at all.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist; expected a folder of images, or {', '.join(TABLES)}")
    left: Counter[str] = Counter()
    if path.is_dir():
        found = list(_of_folder(path, recursive, but, left))
    elif path.suffix.lower() in TABLES:
        found = list(_of_table(path))
    else:
        raise ValueError(f"{str(path)!r} is no folder and does not end in {', '.join(TABLES)}; give images in a folder")
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if twice:
        raise ValueError(f"{str(path)!r} names {twice[0]!r} twice; results go by name")
    if not found:
        kinds = f"; it has other files: {dict(left)}" if left else ""
        more = "" if recursive or not path.is_dir() else ", or pass --recursive"
        raise ValueError(f"no images in {str(path)!r}: expected {', '.join(ENDINGS)}{more}{kinds}")
    return found, dict(left)


def captions(path: str | Path) -> dict[str, str]:
    """Prompts by the name of their image, of a table like a source's.

    Raises:
        FileNotFoundError: no such table. ValueError: it cannot be read, or a row lacks its prompt.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"prompts {str(path)!r} do not exist")
    found = {}
    for number, row in enumerate(_rows(path), 1):
        name, prompt = _named(row, IMAGE), _named(row, PROMPT)
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise ValueError(f"{str(path)!r}, row {number}: expected texts {IMAGE[0]!r} and {PROMPT[0]!r}, got {row}")
        found[clean(Path(name).as_posix())] = clean(prompt)
    return found


def _of_folder(folder: Path, recursive: bool, but: Path | None, left: Counter[str]) -> Iterator[Entry]:
    root, own = os.path.realpath(folder), None if but is None else os.path.realpath(but)
    if own is not None and f"{root}{os.sep}".startswith(f"{own}{os.sep}"):
        raise ValueError(f"results cannot go to {str(but)!r}, where {str(folder)!r} lies; name another folder")
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        relative = path.relative_to(folder)
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(root, relative)
        inside = own is not None and f"{real}{os.sep}".startswith(f"{own}{os.sep}")
        if path.is_dir() or inside or any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix.lower() in ENDINGS:
            yield Entry(clean(relative.as_posix()), str(path.absolute()))
        else:
            left[path.suffix.lower() or "no ending"] += 1


def _of_table(path: Path) -> Iterator[Entry]:
    for number, row in enumerate(_rows(path)):
        image, prompt = _named(row, IMAGE), _named(row, PROMPT)
        prompt = None if prompt is None else clean(str(prompt))
        if isinstance(image, str) and image:
            yield Entry(clean(Path(image).as_posix()), str(path.parent.absolute() / image), prompt)
        elif path.suffix.lower() == ".parquet" and image is parquet.HELD:
            yield Entry(clean(row["name"]), str(path.absolute()), prompt, number)
        else:
            raise ValueError(f"{str(path)!r}, row {number + 1}: expected a path as {IMAGE[0]!r}, got {row}")


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a table."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from parquet.rows(path, IMAGE, PROMPT)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if ending == ".csv":
                yield from csv.DictReader(file)
                return
            for line in filter(None, map(str.strip, file)):
                row = {IMAGE[0]: line} if ending == ".txt" else json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object a line, got {line[:80]!r}")
                yield row
    except (csv.Error, RecursionError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error


def _named(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def clean(text: str) -> str:
    """Text that every file format takes: bytes of a name that are no UTF-8 are written out."""
    return text.encode("utf-8", "backslashreplace").decode()
