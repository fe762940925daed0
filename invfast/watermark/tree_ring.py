"""Tree-Ring: a pattern in the low frequencies of one channel. Wen et al., NeurIPS 2023 (arXiv 2305.20030).

The coefficients within a disc of one channel's Fourier transform are replaced by the key's: "rand", those of Gaussian
noise; "ring", constant on rings, so that they stay where they are when an image is turned; "zeros", nothing. Rings of
real latents have real values: a complex one would lose its imaginary part on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invfast.watermark.base import Key, Score, integers, new_secret
from invfast.watermark.fourier import (
    back,
    check_channel,
    check_radius,
    of_rings,
    paper,
    rings,
    scaled,
    tested,
    transform,
)

PATTERNS = ("ring", "rand", "zeros")
LEAST = 6
"""Frequencies, where they fit: a disc of 3 in latents of 16 x 16 has 29 coefficients, too few to stand out of the error
of an inversion (docs/watermark.md).
"""


@dataclass(frozen=True, repr=False)
class TreeRing(Key):
    """A disc of one channel.

    Args:
        pattern: "ring", "rand" or "zeros".
        radius: of the disc, in frequencies of the shorter side; below half of it. The paper's is 10 of 64.
        channel: of the latents; the paper's is the last of four.
    """

    pattern: str
    radius: int
    channel: int

    kind: ClassVar[str] = "tree_ring"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {self.pattern!r}")
        check_radius(self.shape, self.radius)
        check_channel(self.shape, self.channel)

    @classmethod
    def new(
        cls, shape: Sequence[int], pattern: str = "ring", radius: int | None = None, channel: int | None = None
    ) -> TreeRing:
        """A key with a new secret.

        Args:
            shape: of the latents, (C, h, w).
            pattern: see the class.
            radius: None for 10/64 of the shorter side, but at least LEAST where that fits.
            channel: None for the last.
        """
        sides = integers("shape", shape, 3, 1)
        radius = scaled(10 / 64, sides, LEAST) if radius is None else radius
        return cls(sides, new_secret(), pattern, radius, sides[0] - 1 if channel is None else channel)

    def mark(self, noise: torch.Tensor) -> torch.Tensor:
        key, mask = self._key()
        coefficients = transform(noise[:, self.channel])
        marked = noise.clone()
        marked[:, self.channel] = back(torch.where(mask, key, coefficients))
        return marked

    def read(self, latents: torch.Tensor) -> list[Score]:
        found = transform(latents[:, self.channel])
        if self.pattern == "ring":
            distance, p = of_rings(found, self._values(), rings(*self.shape[1:], self.radius))
        else:
            distance, p = tested(found, *self._key())
        return [Score(self.kind, 0, -d, q) for d, q in zip(distance.tolist(), p.tolist(), strict=True)]

    def paper_p(self, latents: torch.Tensor) -> torch.Tensor:
        """(n,) the paper's own p-values of latents (n, C, h, w), non-central chi-squared.

        They are cautious (without a watermark fewer than .01 are below .01) and of "zeros" always the same; `read` has
        others for both reasons, see fourier.py.
        """
        return paper(transform(self.checked(latents)[:, self.channel]), *self._key())

    def _key(self) -> tuple[torch.Tensor, torch.Tensor]:
        """((h, w) coefficients, (h, w) where they are)."""
        ring = rings(*self.shape[1:], self.radius)
        if self.pattern == "rand":
            key = transform(self.normal("rand", self.shape[1:]))
        elif self.pattern == "ring":
            key = self._values()[ring.clamp(min=0)].to(torch.complex128)
        else:
            key = torch.zeros(self.shape[1:], dtype=torch.complex128)
        return key, ring >= 0

    def _values(self) -> torch.Tensor:
        """(radius,) of the rings, the innermost first."""
        return self.normal("ring", (self.radius,)).double()
