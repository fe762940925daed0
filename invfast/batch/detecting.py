"""Looking for watermarks as a task of the batch engine: nothing is kept of an image but what the keys say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from invfast import plain
from invfast.batch.inverting import Invert, stats_of
from invfast.batch.task import Result, Run
from invfast.images import Frame
from invfast.watermark import Key, detect, fingerprint_of
from invfast.watermark.detecting import keys_of


@dataclass(frozen=True)
class Detect:
    """What keys say of each image, as `watermark.detect` finds it: a row's stats are the fields of `watermark.Score`.

    Args:
        keys: one or several, for latents of one shape.
        invert: how images are inverted. Without a size they are resized to the keys', those of one size together.

    Results and ids know the keys by their fingerprints alone: no secret is written.

    Raises:
        TypeError, ValueError: keys that cannot be asked for together.
    """

    keys: tuple[Key, ...]
    invert: Invert = field(default_factory=Invert)

    __repr__ = plain.line

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", keys_of(self.keys))

    @property
    def frame(self) -> Frame | None:
        return self.invert.frame

    def configuration(self) -> dict[str, Any]:
        """Raises ValueError where the method is none."""
        return {**self.invert.configuration(), "task": "detect", "keys": [fingerprint_of(key) for key in self.keys]}

    def memory(self) -> int:
        return self.invert.memory()

    def prepare(self, check: Callable[[], None]) -> Run:
        pipe = self.invert.load()

        def run(images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Result]:
            how = self.invert.options(seeds, check)
            found = detect(pipe, list(images), self.keys, list(prompts), **how)
            spent = [stats_of(found.inversion[j]) for j in range(len(images))]
            return [
                Result(stats={**stats, **score.as_dict(), "key": fingerprint_of(self.keys[score.key])})
                for stats, score in zip(spent, found.scores, strict=True)
            ]

        return run
