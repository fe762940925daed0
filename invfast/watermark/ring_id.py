"""RingID: rings that say who, beside noise that says whether. Ci et al., ECCV 2024 (arXiv 2404.14055).

Rings of one channel or more carry one bit each, as 1 or -1: discrete values are told apart better than Gaussian ones,
and real ones lose nothing on the way back. In space the rings are shifted by half the sides, so that what they add up
to lies in the middle of an image, where turning and cropping leave it, and not in its corners. Other channels carry a
Gaussian pattern in the same frequencies, which is surer where nothing is turned. A key is as near as its nearest
channel is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invfast.watermark.base import Key, Score, as_tensor, as_text, bits_of, integers, new_secret, random_bits
from invfast.watermark.fourier import back, check_channel, check_radius, rings, scaled, tested, transform

LEAST = 7
"""Frequencies, where they fit: see `TreeRing`."""


@dataclass(frozen=True, repr=False)
class RingID(Key):
    """One of 2^k keys that share a secret, k = (radius - inner) bits a ring channel.

    Args:
        message: zeros and ones, k of them, the innermost ring of the first ring channel first: who.
        radius: of the outermost ring; below half the shorter side. The paper's is 14 of 64.
        inner: frequencies up to here are left alone; the paper's is 3 of 64.
        ring_channels: which channels have rings; the paper's is the last of four.
        noise_channels: which have a Gaussian pattern; the paper's is the first. None is fine.
    """

    message: str
    radius: int
    inner: int
    ring_channels: tuple[int, ...]
    noise_channels: tuple[int, ...]

    kind: ClassVar[str] = "ring_id"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.shape, self.radius, self.inner)
        for name in ("ring_channels", "noise_channels"):
            given = getattr(self, name)
            if not isinstance(given, Sequence) or isinstance(given, str):
                raise ValueError(f"{name} must be a list of channels, got {given!r}")
            for channel in given:
                check_channel(self.shape, channel)
            object.__setattr__(self, name, tuple(int(channel) for channel in given))
        every = (*self.ring_channels, *self.noise_channels)
        if not self.ring_channels or len(set(every)) < len(every):
            raise ValueError(
                f"ring_channels must be at least one, and none of them or of noise_channels twice, got "
                f"{self.ring_channels} and {self.noise_channels}"
            )
        bits_of("message", self.message, (self.radius - self.inner) * len(self.ring_channels))

    @classmethod
    def new(
        cls,
        shape: Sequence[int],
        message: str | None = None,
        radius: int | None = None,
        inner: int | None = None,
        ring_channels: Sequence[int] | None = None,
        noise_channels: Sequence[int] | None = None,
    ) -> RingID:
        """A key with a new secret.

        Args:
            shape: of the latents, (C, h, w).
            message: None for random bits.
            radius: None for 14/64 of the shorter side, but at least LEAST where that fits.
            inner: None for 3/64.
            ring_channels: None for the last.
            noise_channels: None for the first, where there are two at least.
        """
        sides = integers("shape", shape, 3, 1)
        radius = scaled(14 / 64, sides, LEAST) if radius is None else radius
        inner = scaled(3 / 64, sides, 0) if inner is None else inner
        with_rings = (sides[0] - 1,) if ring_channels is None else tuple(ring_channels)
        with_noise = (0,) * (sides[0] > 1) if noise_channels is None else tuple(noise_channels)
        check_radius(sides, radius, inner)
        said = random_bits((radius - inner) * len(with_rings)) if message is None else message
        return cls(sides, new_secret(), said, radius, inner, with_rings, with_noise)

    def mark(self, noise: torch.Tensor) -> torch.Tensor:
        ring, marked = self._rings(), noise.clone()
        for channel, key in self._keys(ring).items():
            marked[:, channel] = back(torch.where(ring >= 0, key, transform(noise[:, channel])))
        return marked

    def read(self, latents: torch.Tensor) -> list[Score]:
        ring, found = self._rings(), transform(latents)
        each = [tested(found[:, channel], key, ring >= 0) for channel, key in self._keys(ring).items()]
        distance, p = (torch.stack(pair).amin(0) for pair in zip(*each, strict=True))
        p = -torch.expm1(len(each) * torch.log1p(-p))  # the least of as many
        bits = self._bits(found, ring)
        right = ((bits > 0) == (as_tensor(self.message) > 0)).double().mean(1)
        lines = zip(distance.tolist(), p.tolist(), bits, right.tolist(), strict=True)
        return [Score(self.kind, 0, -d, q, as_text(said), share) for d, q, said, share in lines]

    def _rings(self) -> torch.Tensor:
        return rings(*self.shape[1:], self.radius, self.inner)

    def _keys(self, ring: torch.Tensor) -> dict[int, torch.Tensor]:
        """(h, w) coefficients by channel."""
        values = as_tensor(self.message).reshape(len(self.ring_channels), -1)
        with_rings = (_shifted(row[ring.clamp(min=0)].masked_fill(ring < 0, 0)) for row in values)
        noise = (
            transform(self.normal(f"noise {self.message} {channel}", self.shape[1:])) for channel in self.noise_channels
        )
        return {
            **dict(zip(self.ring_channels, with_rings, strict=True)),
            **dict(zip(self.noise_channels, noise, strict=True)),
        }

    def _bits(self, found: torch.Tensor, ring: torch.Tensor) -> torch.Tensor:
        """(n, k) above 0 where a ring is nearer to 1 than to -1: the nearest of all 2^k keys, ring by ring."""
        units = _shifted(torch.ones(ring.shape, dtype=torch.float64))
        per_channel = []
        for channel in self.ring_channels:
            y = found[:, channel] * units.conj()
            nearer = (y + 1).abs() - (y - 1).abs()
            rows = [nearer[:, ring == j].sum(1) for j in range(self.radius - self.inner)]
            per_channel.append(torch.stack(rows, 1))
        return torch.cat(per_channel, 1)


def _shifted(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients (h, w) of what they are in space, shifted by half the sides."""
    half = [side // 2 for side in coefficients.shape]
    return transform(back(coefficients.to(torch.complex128)).roll(half, (0, 1)))
