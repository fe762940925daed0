"""Which images are run together: pure functions of the list, of what is there already, and of nothing else.

    id = SHA-256(content of the file, prompt, configuration)

A chunk is what runs at once and is written at once, so what is there is whole chunks. Of each size all but the last
chunk are full; taking whole chunks away leaves the others as they were, and a run that goes on makes the same chunks as
one that was never stopped. Seeds come of ids, so they depend on no order at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from invfast.batch.source import Entry

MOST = 32
"""Images of a chunk at most: beyond it a network gains little, and a kill loses more."""
BYTES = 4096
"""Of activations a pixel, generously: Stable Diffusion's and SDXL's UNet take half of it in float16."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be run, once, whatever the number of its names.

    Args:
        id: see `item_id`.
        names: of the files that hold it.
        entry: where it is read, the first of them.
        prompt: what it shows.
        size: (width, height) it runs at.
        content: SHA-256 of the file.
    """

    id: str
    names: tuple[str, ...]
    entry: Entry
    prompt: str
    size: tuple[int, int]
    content: str

    @property
    def seed(self) -> int:
        """Of the noise that its method draws, 0 to 2^63 - 1."""
        return int(self.id[:16], 16) >> 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images of one size that are run and written together, and the id of them all."""

    id: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Share:
    """Part `part` of `of`, from 1: each image is in one of them, by its name alone, whatever else there is."""

    part: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.of:
            raise ValueError(f"a shard is 1/{self.of} to {self.of}/{self.of}, got {self.part}/{self.of}")

    @classmethod
    def parse(cls, text: str) -> Share:
        """Of "3/10". Raises ValueError for anything else."""
        if not re.fullmatch(r"\d{1,9}/\d{1,9}", text):
            raise ValueError(f"a shard is written as 3/10, the third of ten, got {text!r}")
        part, of = map(int, text.split("/"))
        return cls(part, of)

    def has(self, name: str) -> bool:
        return int.from_bytes(_sha(name.encode())[:8]) % self.of == self.part - 1


def item_id(content: str, prompt: str, configuration: Mapping[str, Any]) -> str:
    """SHA-256 of an image's own digest, its prompt and what its result depends on else."""
    return _sha(json.dumps([content, prompt, configuration], sort_keys=True).encode()).hex()


def merged(items: Iterable[Item]) -> list[Item]:
    """The same, each id once, in the order in which it came first."""
    found: dict[str, Item] = {}
    for item in items:
        first = found.get(item.id)
        found[item.id] = item if first is None else replace(first, names=first.names + item.names)
    return list(found.values())


def chunks(items: Sequence[Item], most: Callable[[tuple[int, int]], int]) -> Iterator[Chunk]:
    """Images in groups of one size, small ones first, within a size in their order.

    Args:
        items: those that are not there yet.
        most: how many of a size run at once.
    """
    groups: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        groups.setdefault(item.size, []).append(item)
    for size in sorted(groups, key=lambda size: (size[0] * size[1], size)):
        group, count = groups[size], most(size)
        for start in range(0, len(group), count):
            some = tuple(group[start : start + count])
            yield Chunk(_sha("".join(item.id for item in some).encode()).hex(), some)


def fitting(memory: int) -> Callable[[tuple[int, int]], int]:
    """How many images of a size run at once in a quarter of `memory` bytes, 1 to MOST."""
    return lambda size: max(1, min(MOST, memory // 4 // (BYTES * size[0] * size[1])))


def _sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
