"""The Ray Data runner: the same worker under `map_batches`, in a pool of actors on one machine or many.

A row of the data set is a chunk, so that its images run together as they would anywhere: {id, items} in, as parquet,
{id, rows} out. Results lie in shards, which every node writes to the one folder, so that must be shared; so must the
images. An actor that dies is made anew and its chunk run again: the shard is the same.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from invfast.batch import parquet
from invfast.batch.plan import Chunk, Item
from invfast.batch.source import Entry
from invfast.batch.worker import Worker
from invfast.files import write_atomically

EXTRA = 'pip install "invfast[ray]"'
BLOCKS = 10_000
"""Tasks of a run at most: a block has more than one chunk only beyond it."""


class Actor:
    """A worker as `map_batches` wants it: its task is made ready once an actor."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        worker.ready()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = [json.dumps(self.worker(unpacked(ident, text))) for ident, text in zip(*_columns(batch), strict=True)]
        return {"id": list(batch["id"]), "rows": rows}


@dataclass(frozen=True)
class Ray:
    """Runs workers as actors of a Ray cluster.

    Args:
        address: of a cluster, "auto" for the one this machine is of; None takes a Ray that was begun in this process,
            or begins one of this machine alone.
        actors: how many.
        gpus: of each; a fraction lets several share one, 0 runs on the CPU.
        cpus: of each.

    Raises:
        ImportError: Ray is not installed; names the extra.
        ValueError: no actors, or a share below 0.
    """

    address: str | None = None
    actors: int = 1
    gpus: float = 0.0
    cpus: float = 1.0

    def __post_init__(self) -> None:
        _ray()
        if self.actors < 1 or not (math.isfinite(self.gpus) and math.isfinite(self.cpus)):
            raise ValueError(f"actors must be at least 1, gpus and cpus finite, got {self}")
        if min(self.gpus, self.cpus) < 0 or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(f"gpus and cpus of an actor are at least 0, and gpus above 1 whole, got {self}")

    @property
    def share(self) -> float:
        """Of a device's memory that one actor has."""
        return self.gpus if 0 < self.gpus < 1 else 1.0 if self.gpus else 1.0 / self.actors

    def __call__(self, worker: Worker, chunks: Sequence[Chunk]) -> Iterator[list[dict[str, Any]]]:
        """The rows of each chunk as it is done, in any order."""
        if not chunks:
            return
        ray, own = _ray(), False
        if not ray.is_initialized():
            # Reading the table wants CPUs too, which actors that hold all of them would never leave to it.
            cpus = (
                {} if self.address else {"num_cpus": max(os.cpu_count() or 1, math.ceil(self.cpus * self.actors) + 2)}
            )
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **cpus)
            own = True
        table = worker.folder / "chunks.parquet"
        packed = [{"id": chunk.id, "items": pack(chunk)} for chunk in chunks]
        write_atomically(table, parquet.dumps(packed, ("id", "items")))
        try:
            yield from self._rows(ray, worker, table, len(chunks))
        finally:
            table.unlink(missing_ok=True)
            if own:
                ray.shutdown()

    def _rows(self, ray: Any, worker: Worker, table: Path, count: int) -> Iterator[list[dict[str, Any]]]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        pool = ray.data.ActorPoolStrategy(size=min(self.actors, count))
        found = ray.data.read_parquet(str(table), override_num_blocks=min(count, BLOCKS)).map_batches(
            Actor,
            fn_constructor_args=(worker,),
            batch_size=1,
            compute=pool,
            num_gpus=self.gpus or None,
            num_cpus=self.cpus,
        )
        try:
            for row in found.iter_rows():
                yield json.loads(row["rows"])
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"a worker on the cluster failed: {_cause(error)}") from error


def pack(chunk: Chunk) -> str:
    """The images of a chunk as JSON."""
    return json.dumps([asdict(item) for item in chunk.items])


def unpacked(ident: str, text: str) -> Chunk:
    """What was packed."""
    items = []
    for each in json.loads(text):
        more = {"names": tuple(each["names"]), "entry": Entry(**each["entry"]), "size": tuple(each["size"])}
        items.append(Item(**{**each, **more}))
    return Chunk(str(ident), tuple(items))


def _columns(batch: dict[str, Any]) -> tuple[Any, Any]:
    return batch["id"], batch["items"]


def _cause(error: BaseException) -> str:
    """What a worker raised, without the stack that Ray puts around it."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _ray() -> Any:
    """ray, with `ray.data`."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"the Ray runner needs ray: {EXTRA}") from error
    return ray
