"""Every inversion under every editor, image by image: a row each, written as soon as it is there.

An image is inverted once, at guidance 1 under its own prompt, for all editors. What goes wrong is a row that says so.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import store
from benchmarks.pie import figures, layout
from benchmarks.pie.learned import Metric
from invfast import Inversion, edit, editing, invert
from invfast.files import write_atomically
from invfast.fingerprint import fingerprint
from invfast.methods import METHODS, to_dict

SCHEMA = 1
"""Raised when figures change their meaning: old rows are then measured again."""


@dataclass(frozen=True)
class Grid:
    """What is asked for.

    Args:
        inversions, editors: by name.
        steps: N.
        guidance: of the edits.
        size: side of the images, in pixels.
        runtime: of `invert` and `edit`.
    """

    inversions: tuple[str, ...]
    editors: tuple[str, ...]
    steps: int
    guidance: float
    size: int
    runtime: str = "auto"

    def cells(self) -> list[tuple[str, str]]:
        """Inversion and editor of every column of rows."""
        return [(inversion, editor) for inversion in self.inversions for editor in self.editors]


@dataclass(frozen=True)
class Bench:
    """What it is run on.

    Args:
        pipe: the pipeline.
        folder: the benchmark's.
        entries: of its mapping file, by the images' names.
        metrics: the networks' that can be had, by name.
    """

    pipe: Any
    folder: Path
    entries: Mapping[str, Any]
    metrics: Mapping[str, Metric]


def editor(name: str) -> editing.Editor:
    """An editor by name, "direct+" before it for `Direct` around it.

    Raises:
        ValueError: no such editor, or one that an image and two prompts are not enough for.
    """
    if name.startswith("direct+"):
        return editing.Direct(editor(name.removeprefix("direct+")))
    found = editing.resolve(name)
    if isinstance(found, editing.Portrait):
        raise ValueError("the editor 'portrait' needs a second image, which PIE-Bench does not have; leave it out")
    return found


def keys(bench: Bench, grid: Grid) -> dict[tuple[str, str, str], str]:
    """What the row of each (image, inversion, editor) is known by: a digest of all that shapes it."""
    scheduler = bench.pipe.scheduler
    model = {
        "weights": [
            str(fingerprint(part).weights)
            for _, part in sorted(bench.pipe.components.items())
            if isinstance(part, torch.nn.Module)
        ],
        "scheduler": f"{type(scheduler).__name__} {sorted(scheduler.config.items())}",
    }
    ways = {
        cell: [to_dict(METHODS[cell[0]]), repr(editor(cell[1])), grid.steps, grid.guidance, grid.size, grid.runtime]
        for cell in grid.cells()
    }
    found = {}
    for name, entry in bench.entries.items():
        image = layout.digest(bench.folder, entry)
        for cell, way in ways.items():
            text = json.dumps([SCHEMA, model, name, image, way, sorted(bench.metrics)], sort_keys=True)
            found[name, *cell] = hashlib.sha256(text.encode()).hexdigest()[:20]
    return found


def resume(path: Path, retry: bool = False) -> list[store.Row]:
    """The rows of a file that is then whole: without a line that was cut off and, to retry, without errors.

    Raises:
        ValueError: the file is damaged elsewhere, or has other rows than these.
    """
    found = store.read(path)
    if any(not isinstance(row, dict) or "run" not in row for row in found):
        raise ValueError(f"{str(path)!r} has rows of something else; give --output another file")
    kept = [row for row in found if not (retry and "error" in row)]
    if path.exists() and (len(kept) < len(found) or not path.read_bytes().endswith(b"\n")):
        write_atomically(path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept).encode())
    return kept


def run(bench: Bench, grid: Grid, path: Path, retry: bool = False) -> list[store.Row]:
    """Makes the rows that the file does not have, and returns those asked for, in the order of the images.

    Raises:
        ValueError: as `resume`. ImportError: something is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted, rows = keys(bench, grid), resume(path, retry)
    done = {row["key"] for row in rows if "key" in row}
    left = {name: [c for c in grid.cells() if wanted[name, *c] not in done] for name in bench.entries}
    left = {name: cells for name, cells in left.items() if cells}
    print(f"{len(bench.entries)} images, {len(left)} of them to do; rows: {path}", file=sys.stderr, flush=True)
    number, began = store.begin(path, rows) if left else 0, time.perf_counter()
    for j, (name, cells) in enumerate(left.items(), 1):
        failed = 0
        for cell, found in measured(bench, grid, name, cells):
            said = {"image": name, "inversion": cell[0], "editor": cell[1], "steps": grid.steps}
            said |= {"guidance": grid.guidance, "size": grid.size}
            store.append(path, {"run": number, "key": wanted[name, *cell], **said, **found})
            failed += "error" in found
        minutes = (time.perf_counter() - began) / j * (len(left) - j) / 60
        said = f"[{j}/{len(left)}] {name}: {len(cells) - failed} rows, {failed} errors; {minutes:.0f} min left"
        print(said, file=sys.stderr, flush=True)
    by_key = {row["key"]: row for row in store.read(path) if "key" in row}
    return [by_key[key] for key in wanted.values()]


def measured(
    bench: Bench, grid: Grid, name: str, cells: Sequence[tuple[str, str]]
) -> Iterable[tuple[tuple[str, str], dict[str, Any]]]:
    """Of one image each cell, and its "figures", or the "error" in their place.

    Raises:
        ImportError: something is not installed, which no other image would have either.
    """
    try:
        example = layout.read(bench.folder, name, bench.entries[name], grid.size)
    except (OSError, ValueError) as error:
        yield from ((cell, _failed(error)) for cell in cells)
        return
    for method in dict.fromkeys(inversion for inversion, _ in cells):
        editors = [e for inversion, e in cells if inversion == method]
        try:
            there = inverted(bench.pipe, example, grid, method, editors)
        except ImportError:
            raise
        except Exception as error:  # of whatever kind: the other images are none the worse for it
            yield from (((method, e), _failed(error)) for e in editors)
            continue
        for each in editors:
            try:
                found = {"figures": edited(bench, example, grid, there, each)}
            except ImportError:
                raise
            except Exception as error:
                found = _failed(error)
            yield (method, each), found


def inverted(pipe: Any, example: layout.Example, grid: Grid, method: str, editors: Sequence[str]) -> Inversion:
    """The inversion of an image, with its path where an editor goes along it."""
    return invert(
        pipe,
        example.picture,
        example.source,
        method=method,
        num_inference_steps=grid.steps,
        runtime=grid.runtime,
        save_trajectory=any(editor(each).corrected for each in editors),
    )


def edited(bench: Bench, example: layout.Example, grid: Grid, there: Inversion, name: str) -> figures.Figures:
    """The figures of one edit."""
    options = {"guidance_scale": grid.guidance, "runtime": grid.runtime}
    picture = edit(bench.pipe, there, example.target, method=editor(name), **options).images[0]
    found = figures.pixels(example.picture, picture, example.mask)
    for metric in bench.metrics.values():
        found |= metric(example.picture, picture, example.mask, example.target)
    return found


def _failed(error: Exception) -> dict[str, str]:
    return {"error": f"{type(error).__name__}: {error}"}
