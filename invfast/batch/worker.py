"""The worker: a task made ready once, which takes images chunk by chunk and writes their shards."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from invfast import images
from invfast.batch import shards
from invfast.batch.ahead import ahead
from invfast.batch.plan import Chunk, Item
from invfast.batch.task import Result, Run, Task

logger = logging.getLogger("invfast")
Row = dict[str, Any]
Decoded = Image.Image | Exception


def nothing() -> None:
    """A `check` that never ends a run."""


HOPELESS = 3
"""Images after which a task that did none, for one and the same reason, is given up."""


class Worker:
    """Maps a chunk to rows {id, names, prompt, file, row, error, seconds, stats}, its results written to a shard.

    It can be sent to another process; there it makes its task ready anew.

    Args:
        task: what is done to each image.
        folder: of the results.
        stop: an image that fails ends the run, in place of being a row.
        proven: something was made with this task before. Until then HOPELESS images that all fail for one and the same
            reason end the run: it is the task that cannot be done.
        check: called often while a task runs; raises where the run is to end.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        *,
        stop: bool = False,
        proven: bool = False,
        check: Callable[[], None] = nothing,
    ) -> None:
        self.task, self.folder, self.stop, self.proven, self.check = task, folder, stop, proven, check
        self._run: Run | None = None
        self._failed: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None, "check": nothing}

    def ready(self) -> Run:
        """The task, made ready where it is not."""
        if self._run is None:
            self._run = self.task.prepare(self.check)
        return self._run

    def __call__(self, chunk: Chunk, decoded: Sequence[Decoded] | None = None) -> list[Row]:
        """Runs a chunk.

        Args:
            chunk: what to run.
            decoded: its images, or what went wrong with them; None reads them here.

        Raises:
            ValueError, RuntimeError, ...: what the task raises where it can do none of them, see `proven`; or where an
                image failed and the worker is to stop.
        """
        run, items = self.ready(), chunk.items
        if decoded is None:
            decoded = list(ahead(partial(decode, frame=self.task.frame), items, len(items), 4))
        began = time.perf_counter()
        found: list[Result | Exception] = [each for each in decoded if isinstance(each, Exception)]
        if self.stop and found:
            raise found[0]
        good = [j for j, each in enumerate(decoded) if not isinstance(each, Exception)]
        results = dict(zip(good, self._results(run, [items[j] for j in good], [decoded[j] for j in good]), strict=True))
        found = [results.get(j, each) for j, each in enumerate(decoded)]
        seconds = round((time.perf_counter() - began) / max(1, len(good)), 4)
        rows = [_row(item, each, seconds) for item, each in zip(items, found, strict=True)]
        # What could not be read may be there the next time: nothing of it is kept.
        kept = [j for j, each in enumerate(found) if not isinstance(each, OSError)]
        outcomes = [None if isinstance(found[j], Exception) else found[j] for j in kept]
        file = shards.write(self.folder, chunk.id, [rows[j] for j in kept], outcomes) if kept else None
        place = {j: {"file": file, "row": number} for number, j in enumerate(kept)}
        return [{**row, **place.get(j, {"file": None, "row": None})} for j, row in enumerate(rows)]

    def _results(self, run: Run, items: list[Item], pictures: list[Any]) -> list[Result | Exception]:
        """One an image; where they fail together each is run alone, so that one does not take the others along."""
        if not items:
            return []
        try:
            found: list[Result | Exception] = list(_of(run, items, pictures))
        except Exception as error:
            if len(items) == 1 or self.stop:
                found = [error] * len(items)
            else:
                logger.warning("%d images failed together, each is run alone: %s", len(items), said(error))
                found = [_alone(run, *pair) for pair in zip(items, pictures, strict=True)]
        failed = [each for each in found if isinstance(each, Exception)]
        self.proven = self.proven or len(failed) < len(found)
        self._failed += [said(each) for each in failed]
        hopeless = not self.proven and len(self._failed) >= HOPELESS and len(set(self._failed)) == 1
        if failed and (self.stop or (hopeless and not isinstance(failed[0], ArithmeticError))):
            raise failed[0]
        return found


def decode(item: Item, frame: images.Frame | None) -> Decoded:
    """An image as a task takes it, at its size; or what went wrong."""
    name = item.names[0]
    try:
        content = item.entry.read()
        if hashlib.sha256(content).hexdigest() != item.content:
            raise OSError(f"image {name!r} was changed while this ran; run it again")
        image = images.decode(content, name)
        return image if frame is None else frame(image)
    except (MemoryError, OSError, ValueError) as error:
        return error


def _of(run: Run, items: Sequence[Item], pictures: Sequence[Image.Image]) -> Sequence[Result]:
    found = run(pictures, [item.prompt for item in items], [item.seed for item in items])
    if len(found) != len(items):
        raise RuntimeError(f"the task gave {len(found)} results for {len(items)} images")
    return found


def _alone(run: Run, item: Item, picture: Image.Image) -> Result | Exception:
    try:
        return _of(run, [item], [picture])[0]
    except Exception as error:
        return error


def _row(item: Item, found: Result | Decoded, seconds: float) -> Row:
    failed = isinstance(found, Exception)
    return {
        "id": item.id,
        "names": list(item.names),
        "prompt": item.prompt,
        "error": said(found) if failed else None,
        "seconds": None if failed else seconds,
        "stats": dict(found.stats) if isinstance(found, Result) and found.stats else None,
    }


def said(error: BaseException) -> str:
    """An error as a row has it."""
    return f"{type(error).__name__}: {error}"
