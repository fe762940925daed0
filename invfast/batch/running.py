"""A run: what is asked for, less what is there, through a runner, into shards, log and index."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from invfast import images, plain
from invfast.batch import index, plan, source
from invfast.batch.ahead import ahead
from invfast.batch.index import Log, Row
from invfast.batch.local import Local
from invfast.batch.plan import Chunk, Item, Share
from invfast.batch.source import Entry
from invfast.batch.task import Task
from invfast.batch.worker import Worker, nothing, said

logger = logging.getLogger("invfast")

THREADS = 8
"""That read files for their digests: most of it is waiting."""


class Runner(Protocol):
    """Where workers run."""

    share: float
    """Of a device's memory that one worker has."""

    def __call__(self, worker: Worker, chunks: Sequence[Chunk]) -> Iterator[list[Row]]:
        """The rows of each chunk as it is done, in any order."""


@dataclass
class Progress:
    """How far a run is, as it goes.

    Args:
        images: asked for, of this shard.
        left: files of a folder that are no images, how many by ending.
        read: of them read, for their digests.
        before: with a result when it began.
        done: given one in this run.
        errors: of the failed, before and in this run, by name.
        index: the file of the index, once it is written.
        began: `time.monotonic()` when the first chunk was begun.
    """

    images: int = 0
    left: dict[str, int] = field(default_factory=dict)
    read: int = 0
    before: int = 0
    done: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    index: Path | None = None
    began: float | None = None

    __repr__ = plain.line

    @property
    def through(self) -> int:
        """Images that are done or failed."""
        return self.before + self.done + self.failed

    @property
    def failed(self) -> int:
        """Images without a result."""
        return len(self.errors)

    @property
    def seconds(self) -> float:
        """Since the first chunk was begun."""
        return 0.0 if self.began is None else time.monotonic() - self.began


def run(
    given: str | os.PathLike[str],
    output: str | os.PathLike[str],
    task: Task,
    *,
    recursive: bool = False,
    prompt: str = "",
    prompts: Mapping[str, str] | None = None,
    batch: int | None = None,
    shard: Share | None = None,
    on_error: str = "skip",
    retry: bool = False,
    runner: Runner | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] = nothing,
) -> Progress:
    """Does a task to every image of a source that is not done yet; results go to shards and an index in a folder.

    However it ends, killed or not, the same call goes on from there and finds the same: on a CPU bit for bit.

    Args:
        given: a folder, list or table of images, see `batch.source.entries`.
        output: folder of the results; one task's, whose settings must not change.
        task: what is done, `batch.Invert(...)`.
        recursive: of a folder, its folders too.
        prompt: of images that have none of their own.
        prompts: by image name, before those of a table.
        batch: images run at once; None takes what fits into a quarter of the device's memory, at most 32.
        shard: the part of the images that is this process's; several may share a folder.
        on_error: "skip" makes images that fail rows with an error, "stop" ends the run at the first.
        retry: run again what failed before.
        runner: where workers run; None is this process, `batch.Ray(...)` a cluster.
        progress: kept up to date while it runs.
        check: called often; raises where the run is to end. What is done by then is kept.

    Returns:
        Progress, its `failed` the number of images without a result.

    Raises:
        ValueError, OSError: a source, folder or setting that cannot be used, or the first failing image with
            on_error="stop".
    """
    if on_error not in ("skip", "stop"):
        raise ValueError(f"on_error must be 'skip' or 'stop', got {on_error!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    folder, at = Path(output).absolute(), Progress() if progress is None else progress
    runner, stop = Local() if runner is None else runner, on_error == "stop"
    entries, at.left = source.entries(given, recursive, folder)
    _check_names(prompts or {}, entries)
    mine = [each for each in entries if shard is None or shard.has(each.name)]
    configuration = task.configuration()
    index.begin(folder, configuration, [Path(given)])
    at.images = len(mine)
    with Log(folder / f"log{'' if shard is None else f'-{shard.part}-of-{shard.of}'}.jsonl") as log:
        book = _Book(at, log)
        try:
            asked = [(each, source.clean(_prompt(each, prompts or {}, prompt))) for each in mine]
            items = plan.merged(book.items(_scanned(asked, configuration, task.frame), stop, check))
            todo = book.less_known(items, index.read(folder), retry)
            most = plan.fitting(int(task.memory() * runner.share)) if batch is None else lambda size: batch
            worker = Worker(task, folder, stop=stop, proven=at.before > 0, check=check)
            at.began = time.monotonic()
            for rows in runner(worker, list(plan.chunks(todo, most))):
                book.done(rows)
                check()
        finally:
            at.index = index.write(folder, book.rows)
    return at


class _Book:
    """The rows of a run by name, as they become known, and what follows from them."""

    def __init__(self, at: Progress, log: Log) -> None:
        self.at, self.log, self.rows = at, log, {}

    def items(self, scanned: Iterable[Item | Row], stop: bool, check: Callable[[], None]) -> Iterator[Item]:
        """The items among what was scanned; the rest are rows."""
        for each in scanned:
            check()
            self.at.read += 1
            if isinstance(each, Item):
                yield each
                continue
            if stop:
                raise ValueError(each["error"].split(": ", 1)[1])
            self._take([each], logged=True)

    def less_known(self, items: Sequence[Item], known: index.Known, retry: bool) -> list[Item]:
        """The items that are not done; rows of the others are taken over, under the names of today."""
        todo = []
        for item in items:
            row = known.ids.get(item.id)
            if row is None or row["file"] is None or (retry and row["error"] is not None):
                todo.append(item)
                continue
            self.at.before += len(item.names) if row["error"] is None else 0
            self._take(index.of_names(row, item.names), logged=False)
        return todo

    def done(self, rows: Iterable[Row]) -> None:
        """What a worker made of a chunk."""
        for row in rows:
            self.at.done += len(row["names"]) if row["error"] is None else 0
            self._take(index.of_names(row, row["names"]), logged=True)

    def _take(self, rows: Iterable[Row], logged: bool) -> None:
        for row in rows:
            self.rows[row["name"]] = row
            if row["error"] is not None:
                self.at.errors[row["name"]] = row["error"]
            if logged:
                self.log.add(row)


def _scanned(
    asked: Iterable[tuple[Entry, str]], configuration: Mapping[str, Any], frame: images.Frame | None
) -> Iterator[Item | Row]:
    """An item an entry and prompt, or a row that says why it is none; read in threads."""

    def scan(given: tuple[Entry, str]) -> Item | Row:
        (entry, prompt), ident = given, None
        try:
            content = entry.read()
            digest = hashlib.sha256(content).hexdigest()
            ident = plan.item_id(digest, prompt, configuration)
            own = images.size_of(content, entry.name)
        except (MemoryError, OSError, ValueError) as error:
            return index.of_names({"id": ident, "prompt": prompt, "error": said(error)}, [entry.name])[0]
        return Item(ident, (entry.name,), entry, prompt, own if frame is None else frame.size, digest)

    yield from ahead(scan, asked, 4 * THREADS, THREADS)


def _check_names(prompts: Mapping[str, str], entries: Sequence[Entry]) -> None:
    """Prompts that name no image are told, and where none does they are for other images."""
    names = {each.name for each in entries}
    strange = [name for name in prompts if name not in names]
    if not strange:
        return
    said = f"{len(strange)} of {len(prompts)} prompts name no image, {strange[0]!r} is one; images are named as "
    said += repr(entries[0].name)
    if len(strange) == len(prompts):
        raise ValueError(said)
    logger.warning(said)


def _prompt(entry: Entry, prompts: Mapping[str, str], default: str) -> str:
    found = prompts.get(entry.name, entry.prompt)
    return default if found is None else found
