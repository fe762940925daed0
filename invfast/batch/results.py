"""Results read again: by name or id, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from invfast.batch import index, shards
from invfast.batch.index import Row
from invfast.inversion import Inversion


class Results(Mapping[str, Inversion]):
    """The inversions in a folder of results, by name (`results["sub/a.png"]`) or id; each is read when it is asked for.

    Names are those of what was done; `rows`, by name, has the failed too (`batch.index.COLUMNS`).
    """

    def __init__(self, folder: Path) -> None:
        known = index.read(folder)
        self.folder = folder
        self.rows: dict[str, Row] = {name: known.names[name] for name in sorted(known.names)}
        self._ids = known.ids

    def __getitem__(self, name: str) -> Inversion:
        """An image's inversion, bit for bit as it was found.

        Raises:
            KeyError: no such name or id. ValueError: the image failed, says how; or the shard is damaged.
        """
        tensors, says = self.tensors(name)
        return Inversion.unpacked(tensors, says, f"inversion of {name!r} in {str(self.folder)!r}")

    def __iter__(self) -> Iterator[str]:
        return (name for name, row in self.rows.items() if row["error"] is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        row = self._row(name)
        return row is not None and row["error"] is None

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by name."""
        return {name: row["error"] for name, row in self.rows.items() if row["error"] is not None}

    def tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What a task of any kind kept of an image, and what it said of it. Raises as `results[name]` does."""
        row = self._row(name)
        if row is None:
            raise KeyError(f"{str(self.folder)!r} has no {name!r}; it has {len(self.rows)} names, see .rows")
        if row["error"] is not None:
            raise ValueError(f"{name!r} has no result: {row['error']}")
        return shards.read(self.folder, row["file"], row["row"])

    def _row(self, name: Any) -> Row | None:
        return self.rows.get(name) or self._ids.get(name)

    def __repr__(self) -> str:
        return f"Results({str(self.folder)!r}: {len(self)} done, {len(self.errors)} failed)"


def open(folder: str | Path) -> Results:
    """The results in a folder, also while a run goes on, as far as it is.

    Raises:
        FileNotFoundError: no such folder, or none of results.
    """
    folder = Path(folder)
    if not (folder / index.ABOUT).is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no folder of results: it has no {index.ABOUT}")
    return Results(folder)
