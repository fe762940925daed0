"""What is done to each image: a task says what its results depend on, and is made ready once a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image

from invfast import plain
from invfast.images import Frame

Run = Callable[[Sequence[Image.Image], Sequence[str], Sequence[int]], Sequence["Result"]]
"""Images of one size (RGB), their prompts and their seeds -> one result an image, which depends on nothing else."""


@dataclass(frozen=True, eq=False)
class Result:
    """What was found of one image.

    Args:
        tensors: by name, without "/": what is kept of it, on the CPU.
        stats: plain values for the index, by name.
        says: texts beside the tensors, for who reads them again.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)

    __repr__ = plain.line


class Task(Protocol):
    """A frozen dataclass of plain settings, so that it travels to other processes."""

    @property
    def frame(self) -> Frame | None:
        """What size images come to and how, None for their own."""

    def configuration(self) -> dict[str, Any]:
        """Plain values: all that a result depends on beside the image and its prompt. Ids are made of it."""

    def memory(self) -> int:
        """Bytes of the device it runs on, all of them, for how many images run at once."""

    def prepare(self, check: Callable[[], None]) -> Run:
        """Loads what it takes. `check` is to be called often; it raises where the run is to end."""
