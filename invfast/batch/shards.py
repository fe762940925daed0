"""Shards: one safetensors file a chunk, written at once. What lies in a shard is done; all else is made of shards.

Tensor "3/latents" is the latents of its image 3. The metadata's "rows" is JSON, one row an image, errors among them,
and "3/NAME" what the task says of image 3.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from invfast import plain
from invfast.batch.task import Result
from invfast.files import write_atomically

FORMAT, SCHEMA = "invfast.batch", "1"
FOLDER = "shards"
KINDS = {
    "id": str,
    "names": list[str],
    "prompt": str,
    "error": str | None,
    "seconds": float | None,
    "stats": dict | None,
}
"""What a row in a shard has, and of what kind."""

logger = logging.getLogger("invfast")


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], results: Sequence[Result | None]) -> str:
    """Writes a shard, whole or not at all; its path relative to `folder`.

    Args:
        folder: of all results.
        name: of the chunk.
        rows: one an image, see KINDS.
        results: one an image, None for an error.
    """
    tensors, says = {}, {"format": FORMAT, "schema": SCHEMA, "rows": json.dumps(list(rows))}
    for j, result in enumerate(results):
        if result is not None:
            # Copies, for safetensors takes no two that share memory, as what a chunk has once does.
            own = {key: value.detach().cpu().contiguous().clone() for key, value in result.tensors.items()}
            tensors |= {f"{j}/{key}": value for key, value in own.items()}
            says |= {f"{j}/{key}": text for key, text in result.says.items()}
    path = folder / FOLDER / f"{name[:32]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, says))
    return path.relative_to(folder).as_posix()


def files(folder: Path) -> list[str]:
    """All shards, their paths relative to `folder`, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in (folder / FOLDER).glob("*.safetensors"))


def opens(folder: Path, file: str) -> bool:
    """Whether a shard is there and whole, by its header; where it is not, a warning."""
    try:
        with safetensors.safe_open(folder / file, "pt"):
            return True
    except FileNotFoundError:
        return False
    except (OSError, safetensors.SafetensorError) as error:
        logger.warning("shard %r cannot be used, its images are run again: %s", str(folder / file), error)
        return False


def rows(folder: Path, but: Container[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of all shards, but those of files named in `but`, with "file" and "row", where the
    result lies, and "written", when, in nanoseconds.

    A shard that cannot be read is passed over, with a warning: its images are run again.
    """
    for file in files(folder):
        if file in but:
            continue
        path = folder / file
        try:
            written = path.stat().st_mtime_ns
            with safetensors.safe_open(path, "pt") as opened:
                found = _rows(opened.metadata())
        except (KeyError, OSError, RecursionError, ValueError, safetensors.SafetensorError) as error:
            logger.warning("shard %r cannot be used, its images are run again: %s", str(path), error)
            continue
        for j, row in enumerate(found):
            yield {**row, "file": file, "row": j, "written": written}


def read(folder: Path, file: str, row: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and texts of one image.

    Raises:
        FileNotFoundError: no such shard. ValueError: it cannot be used.
    """
    path, start = folder / file, f"{row}/"
    if not path.is_file():
        raise FileNotFoundError(f"shard {str(path)!r} does not exist")
    try:
        with safetensors.safe_open(path, "pt") as opened:
            says = opened.metadata() or {}
            _rows(says)
            names = [name for name in opened.keys() if name.startswith(start)]  # noqa: SIM118 (no mapping)
            tensors = {name.removeprefix(start): opened.get_tensor(name).clone() for name in names}
    except (KeyError, RecursionError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"shard {str(path)!r} cannot be used: {error}; delete it, and the same command makes it again"
        ) from error
    return tensors, {name.removeprefix(start): text for name, text in says.items() if name.startswith(start)}


def _rows(says: Mapping[str, str] | None) -> list[dict[str, Any]]:
    says = says or {}
    if (says.get("format"), says.get("schema")) != (FORMAT, SCHEMA):
        raise ValueError(
            f"it is no {FORMAT} file of schema {SCHEMA}, but {says.get('format')!r} {says.get('schema')!r}"
        )
    found = json.loads(says["rows"])
    plain.check(found, list[dict], "its rows")
    for row in found:
        for name, kind in KINDS.items():
            plain.check(row[name], kind, f"its rows: {name}")
    return found
