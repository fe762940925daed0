"""Memory of this process, sampled."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

FIELDS = {"own_gib": "RssAnon", "resident_gib": "VmRSS"}


class Memory(threading.Thread):
    """From `with` to its end: what the process had at first, and the peaks, of its own memory and of all it touches.

    In GiB; mapped files are in the second alone, children in neither.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.peaks = _now()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            now = _now()
            self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}


def _now() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    kept = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith("kB")}
    return {name: kept[field] for name, field in FIELDS.items()}
