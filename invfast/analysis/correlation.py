"""Correlation inside patches, over the batch: neighbours of true noise know nothing of each other.

Of each 8 x 8 patch the C * 64 values of a latent are variables, the latents are observations. Reported is the mean of
the 20 largest |r| above the diagonal of Pearson's matrix, averaged over patches (There and Back Again, arXiv
2410.23530, section 3). The largest of thousands of |r| are far from 0 in noise too: the figure means nothing alone.

Sums are kept, not latents: of each patch means m and products S of the deviations, joined batch by batch,

    S <- S + S_b + (m_b - m)(m_b - m)^T n n_b / (n + n_b)        (Chan, Golub and LeVeque, 1983)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from invfast.ambient import neutral
from invfast.analysis.base import Result, TooSmallError, checked, scipy_stats

FAMILY = 0.01
"""Chance that noise has any pair above `Correlation.threshold`."""


@dataclass(frozen=True, repr=False)
class Correlation(Result):
    """Figures of one set of latents.

    Args:
        n: latents.
        pairs: pairs of elements, of all patches.
        top: mean over patches of the mean of the largest |r|.
        top_std: its standard deviation over patches, 0 for a single one.
        strongest: the largest |r| of all.
        threshold: |r| that no pair of independent Gaussian elements exceeds with a chance of 99 %, all pairs together
            (Student's t of r, divided among the pairs as Bonferroni does).
        found: how many pairs exceed it.
        by_patch: mean of the largest |r| of each patch, row by row.
    """

    n: int
    pairs: int
    top: float
    top_std: float
    strongest: float
    threshold: float
    found: int
    by_patch: tuple[float, ...]


@neutral()
def correlation(latents: torch.Tensor, *, patch: int = 8, top: int = 20) -> Correlation:
    """Correlation of latents that are all at hand; `PatchCorrelation` takes them batch by batch.

    Args:
        latents: (n, C, h, w), at least 3, finite floats on any device.
        patch: side of a patch. Sides that are no multiple of it end with smaller patches.
        top: how many of the largest |r| of a patch are averaged, all where it has fewer.

    Raises:
        TypeError, ValueError: latents that cannot be used, patches of one element, `patch` or `top` below 1.
    """
    sums = PatchCorrelation(patch)
    sums.add(latents)
    return sums.result(top)


class PatchCorrelation:
    """Pearson's r inside patches, of any number of latents, of which none is kept.

    It holds (C * patch^2)^2 float64 numbers a patch: 34 MB for latents (4, 64, 64).

    Args:
        patch: side of a patch, as in `correlation`.

    Raises:
        ValueError: `patch` is no integer of at least 1.
    """

    def __init__(self, patch: int = 8) -> None:
        self.patch = _positive("patch", patch)
        self.n = 0
        self.shape: tuple[int, ...] | None = None
        """(C, h, w) of the latents taken so far."""
        self._means: list[torch.Tensor] = []
        self._products: list[torch.Tensor] = []

    @neutral()
    def add(self, latents: torch.Tensor) -> None:
        """Takes a batch (n, C, h, w) of any size.

        Raises:
            TypeError, ValueError: latents that cannot be used, or of another shape than those before.
        """
        x = checked("latents", latents)
        if self.shape is not None and self.shape != tuple(x.shape[1:]):
            raise ValueError(f"latents must have the shape (n, *{self.shape}) of those before, got {tuple(x.shape)}")
        if self.shape is None:
            self.shape = tuple(x.shape[1:])
            sizes = [values.shape[1] for values in self._patches(x[:1])]
            self._means = [torch.zeros(size, dtype=torch.float64, device="cpu") for size in sizes]
            self._products = [torch.zeros(size, size, dtype=torch.float64, device="cpu") for size in sizes]
        total = self.n + len(x)
        for mean, products, values in zip(self._means, self._products, self._patches(x), strict=True):
            own = values.mean(0)
            centred, moved = values - own, own - mean
            products += centred.T @ centred + torch.outer(moved, moved) * (self.n * len(x) / total)
            mean += moved * (len(x) / total)
        self.n = total

    def matrices(self) -> Iterator[torch.Tensor]:
        """Pearson's matrix (m, m) of each patch, row by row, float64; elements in the order of (C, rows, columns).

        An element that never varies has r = 0 with all.
        """
        for products in self._products:
            scale = products.diagonal().sqrt()
            inverse = torch.where(scale > 0, 1 / scale, 0.0)
            yield products * inverse * inverse.unsqueeze(1)

    @neutral()
    def result(self, top: int = 20) -> Correlation:
        """The figures of all latents taken so far.

        Raises:
            ValueError: fewer than 3 latents, patches of one element, or `top` below 1.
        """
        top = _positive("top", top)
        if self.n < 3:
            raise TooSmallError(f"correlation needs at least 3 latents, got {self.n}; give more of one shape")
        upper = [r[tuple(torch.triu_indices(*r.shape, 1))].abs() for r in self.matrices() if len(r) > 1]
        if not upper:
            raise TooSmallError(f"correlation needs patches of two elements or more, got latents {self.shape}")
        pairs = sum(len(r) for r in upper)
        limit = _threshold(self.n, pairs)
        tops = torch.stack([r.topk(min(top, len(r))).values.mean() for r in upper])
        return Correlation(
            n=self.n,
            pairs=pairs,
            top=float(tops.mean()),
            top_std=float(tops.std()) if len(tops) > 1 else 0.0,
            strongest=max(float(r.max()) for r in upper),
            threshold=limit,
            found=sum(int((r > limit).sum()) for r in upper),
            by_patch=tuple(tops.tolist()),
        )

    def _patches(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """(n, elements) of each patch, float64, one after the other: all at once would be a copy of the batch."""
        side = self.patch
        for i in range(0, x.shape[2], side):
            for j in range(0, x.shape[3], side):
                yield x[:, :, i : i + side, j : j + side].flatten(1).double()


def _threshold(n: int, pairs: int) -> float:
    """|r| with a chance of FAMILY / pairs: t = r sqrt((n - 2) / (1 - r^2)) is Student's with n - 2 degrees."""
    t = float(scipy_stats().t.isf(FAMILY / (2 * pairs), n - 2))
    return t / (n - 2 + t * t) ** 0.5


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)
