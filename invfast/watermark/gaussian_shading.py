"""Gaussian Shading: a message in the signs of all elements. Yang et al., CVPR 2024 (arXiv 2404.04956).

    message (k bits) -> tiled over the latents -> xor a stream -> sign of each element, |N(0, 1)| its magnitude

The stream makes the signs random bits, so the latents are exactly standard normal: that is the paper's truncated
sampling for one bit an element, the number it recommends. Reading: sign, xor, majority of a bit's copies.

The stream is SHAKE-256 of nonce and secret (the paper has ChaCha20; this one is in the standard library). A key is one
pattern of signs: each image by itself is normal, but images of one key share them. A new nonce makes another pattern.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from invfast.watermark.base import (
    Key,
    Score,
    as_tensor,
    as_text,
    bits_of,
    integer,
    integers,
    new_secret,
    random_bits,
    scipy_stats,
)

MOST = 8
"""Copies along a side, where the side can be divided: the paper's."""


@dataclass(frozen=True, repr=False)
class GaussianShading(Key):
    """A message of k = C h w / copies bits.

    Args:
        message: zeros and ones, k of them.
        copies: how often it is tiled along channels, height and width; each divides its side.
        nonce: hexadecimal, no secret; keys that share a secret differ in it.
    """

    message: str
    copies: tuple[int, int, int]
    nonce: str

    kind: ClassVar[str] = "gaussian_shading"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "copies", integers("copies", self.copies, 3, 1))
        if any(side % each for side, each in zip(self.shape, self.copies, strict=True)):
            raise ValueError(f"copies must divide the sides of latents {self.shape}, got {self.copies}")
        bits_of("message", self.message, self._capacity())
        try:
            bytes.fromhex(self.nonce)
        except (TypeError, ValueError):
            raise ValueError(f"nonce must be hexadecimal, got {str(self.nonce)[:80]!r}") from None

    @classmethod
    def new(
        cls, shape: Sequence[int], message: str | None = None, copies: Sequence[int] | None = None
    ) -> GaussianShading:
        """A key with a new secret and nonce.

        Args:
            shape: of the latents, (C, h, w).
            message: None for random bits.
            copies: None for 1 x 8 x 8, as far as the sides can be divided. More copies carry fewer bits, and carry
                them more surely.
        """
        sides = integers("shape", shape, 3, 1)
        tiled = [1, *(math.gcd(side, MOST) for side in sides[1:])] if copies is None else copies
        tiled = integers("copies", tiled, 3, 1)
        said = random_bits(math.prod(sides) // math.prod(tiled)) if message is None else message
        return cls(sides, new_secret(), said, tiled, secrets.token_hex(16))

    def mark(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.abs() * self._signs()

    def read(self, latents: torch.Tensor) -> list[Score]:
        agreeing = ((latents > 0) == (self._signs() > 0)).flatten(1).sum(1)
        n = math.prod(self.shape)
        p = scipy_stats().binom.sf(agreeing.numpy() - 1, n, 0.5)
        said = as_tensor(self.message)
        found = self._votes(latents)
        right = ((found > 0) == (said > 0)).double().mean(1)
        return [
            Score(self.kind, 0, count / n, float(q), as_text(bits), share)
            for count, q, bits, share in zip(agreeing.tolist(), p, found, right.tolist(), strict=True)
        ]

    def threshold(self, fpr: float, keys: int = 1) -> int:
        """How many bits must be right so that latents without the key come so far once in 1 / fpr times at most.

        The paper's: the bits of such latents are fair coins, so it is a quantile of the binomial distribution.

        Args:
            fpr: between 0 and 1.
            keys: how many are tried.

        Raises:
            ValueError: fpr out of range, or no number of bits is enough: a longer message is needed.
        """
        if not isinstance(fpr, Real) or not 0 < fpr < 1:
            raise ValueError(f"fpr must lie between 0 and 1, got {fpr!r}")
        k, each = len(self.message), -math.expm1(math.log1p(-fpr) / integer("keys", keys, 1))
        least = int(scipy_stats().binom.isf(each, k, 0.5)) + 1
        if least > k:
            raise ValueError(f"{k} bits cannot tell {keys} keys at a false positive rate of {fpr}: take fewer copies")
        return least

    def _capacity(self) -> int:
        return math.prod(self.shape) // math.prod(self.copies)

    def _stream(self) -> torch.Tensor:
        """(C, h, w) of 1 and -1."""
        count = math.prod(self.shape)
        stream = torch.frombuffer(bytearray(self.stream(f"stream {self.nonce}", -(-count // 8))), dtype=torch.uint8)
        bits = stream[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return (1 - 2 * bits.flatten()[:count].double()).reshape(self.shape)

    def _signs(self) -> torch.Tensor:
        """(C, h, w) the sign of every element: product of signs is xor of bits."""
        block = [side // each for side, each in zip(self.shape, self.copies, strict=True)]
        return as_tensor(self.message).reshape(block).repeat(self.copies) * self._stream()

    def _votes(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, k) above 0 where most copies of a bit say one; where they tie, the larger magnitudes decide."""
        said = latents * self._stream()
        sides = [(each, side // each) for side, each in zip(self.shape, self.copies, strict=True)]
        copies = said.reshape(len(said), *(part for pair in sides for part in pair))
        votes, sums = (each.sum((1, 3, 5)).flatten(1) for each in (copies.sign(), copies))
        return torch.where(votes == 0, sums, votes)
