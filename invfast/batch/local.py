"""The local runner: one worker in this process, images decoded ahead in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from invfast.batch.ahead import ahead
from invfast.batch.plan import Chunk
from invfast.batch.worker import Worker, decode

THREADS = 2
"""A network leaves little to more of them, and a JPEG is decoded in a few hundredths of its inversion's time."""


class Local:
    """Runs a worker in this process."""

    share = 1.0

    def __call__(self, worker: Worker, chunks: Sequence[Chunk]) -> Iterator[list[dict[str, Any]]]:
        """The rows of each chunk as it is done; the next chunk's images are decoded meanwhile."""
        if not chunks:
            return
        worker.ready()
        most = 2 * max(len(chunk.items) for chunk in chunks)
        items = (item for chunk in chunks for item in chunk.items)
        pictures = ahead(partial(decode, frame=worker.task.frame), items, most, THREADS)
        try:
            for chunk in chunks:
                yield worker(chunk, list(islice(pictures, len(chunk.items))))
        finally:
            pictures.close()
