"""Parquet, which needs pyarrow: tables of images in, the index out."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

EXTRA = 'pip install "invfast[parquet]"'
HELD = object()
"""In place of an image that lies in the table itself: it is read when its turn comes."""
_reading = threading.Lock()


def installed() -> bool:
    """Whether pyarrow can be imported."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def pyarrow() -> Any:
    """pyarrow, with `pyarrow.parquet`.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"parquet needs pyarrow: {EXTRA}; a table can be .csv or .jsonl without it") from error
    return pyarrow


def rows(path: Path, images: Sequence[str], prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a table with image and prompt, whatever their columns are called; images in it are HELD.

    An image in the table goes by the path it came from where the table says it, else by its row's number.

    Raises:
        ValueError: no parquet file, or no column of images.
    """
    file = _opened(str(path), _stamp(str(path)))
    known = file.schema_arrow.names
    image = next((name for name in images if name in known), None)
    if image is None:
        raise ValueError(f"{str(path)!r} has no column {' or '.join(map(repr, images))}, but {known}")
    prompt = next((name for name in prompts if name in known), None)
    kind = file.schema_arrow.field(image).type
    columns = [] if prompt is None else [prompt]
    held = not _is_text(kind)
    path_of = f"{image}.path" if _has_path(kind) else None
    columns += [image] if not held else [path_of] if path_of else []
    number = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=columns)
        for each in table.to_pylist() if columns else [{}] * file.metadata.row_group(group).num_rows:
            of = each.get(image)
            name = (of or {}).get("path") if held else None
            yield {
                images[0]: HELD if held else of,
                prompts[0]: each.get(prompt) if prompt else None,
                "name": name or f"{number:08d}",
            }
            number += 1


def image(path: str, row: int) -> bytes:
    """The content of the image in a row.

    Raises:
        ValueError: the row holds none.
    """
    file = _opened(path, _stamp(path))
    group = 0
    while row >= file.metadata.row_group(group).num_rows:
        row -= file.metadata.row_group(group).num_rows
        group += 1
    with _reading:  # threads that want the same group wait for it
        value = _images(path, group, _stamp(path))[row].as_py()
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes):
        raise ValueError(f"row {row} of group {group} in {path!r} holds no image, but {type(content).__name__}")
    return content


def _stamp(path: str) -> tuple[int, ...]:
    """What tells a file from the one that it replaced."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino


@functools.lru_cache(maxsize=4)
def _images(path: str, group: int, stamp: tuple[int, ...]) -> Any:
    file = _opened(path, stamp)
    name = next(name for name in ("image", "file_name") if name in file.schema_arrow.names)
    return file.read_row_group(group, columns=[name])[name]


@functools.lru_cache(maxsize=8)
def _opened(path: str, stamp: tuple[int, ...]) -> Any:
    arrow = pyarrow()
    try:
        return arrow.parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path!r} is no parquet file, or damaged: {error}") from error


def _is_text(kind: Any) -> bool:
    types = pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind)


def _has_path(kind: Any) -> bool:
    return pyarrow().types.is_struct(kind) and kind.get_field_index("path") >= 0


def dumps(found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """A table of rows as the content of a parquet file."""
    arrow = pyarrow()
    table = arrow.table({name: arrow.array([row.get(name) for row in found]) for name in columns})
    into = io.BytesIO()
    arrow.parquet.write_table(table, into)
    return into.getvalue()


def loads(path: Path) -> list[dict[str, Any]]:
    """The rows of an index."""
    return _opened.__wrapped__(str(path), ()).read().to_pylist()
