"""What a run asks of the network."""

from __future__ import annotations

from collections.abc import Iterable


class Counts:
    """Evaluations of each image of a batch, and rows that the network computed, needed or not."""

    def __init__(self, batch: int) -> None:
        self.evaluations, self.samples = [0] * batch, 0

    def add(self, samples: int, images: Iterable[int] | None = None, times: int = 1) -> None:
        """One call of the network, at `times` times at once, that counts for some images; None for all."""
        self.samples += samples
        for j in range(len(self.evaluations)) if images is None else images:
            self.evaluations[j] += times

    def join(self, other: Counts) -> None:
        """Adds what another run of as many images counted."""
        self.samples += other.samples
        self.evaluations = [a + b for a, b in zip(self.evaluations, other.evaluations, strict=True)]

    def anew(self) -> Counts:
        """Those of another run of as many images: none."""
        return Counts(len(self.evaluations))


class Counted:
    """What keeps counts of a run."""

    counts: Counts

    @property
    def evaluations(self) -> list[int]:
        """Of each image, since the run began."""
        return self.counts.evaluations

    @property
    def samples(self) -> int:
        """Rows that the network computed, needed or not."""
        return self.counts.samples
