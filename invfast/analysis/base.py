"""What all figures share: results of plain values, latents checked, and noise beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from invfast import plain

SEED = 23530
"""Of the noise beside, of permutations and of what is drawn from a latent, unless another is given."""

APART = 1_000_003
"""Added to the seed of the noise beside, so that noise which a caller drew from the same seed is another.

Below 2^32, for torch takes no more of a seed.
"""

COLUMNS = 1024
"""Elements permuted at once, so that a null needs little memory of its own."""

Found = TypeVar("Found")


class TooSmallError(ValueError):
    """Too few latents, or too small ones, for this figure."""


class Result:
    """A frozen dataclass of plain values."""

    __repr__ = plain.line

    def as_dict(self) -> dict[str, Any]:
        """Its fields as JSON has them; numbers that are not finite become None."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True, repr=False)
class Beside(Result, Generic[Found]):
    """One figure three times.

    Args:
        latents: of the latents.
        noise: of true Gaussian noise of the same shape and number.
        permuted: of the latents with what is asked for broken up, None where that says nothing.
    """

    latents: Found
    noise: Found
    permuted: Found | None = None


def beside(
    figure: Callable[[torch.Tensor], Found], latents: torch.Tensor, *, seed: int = SEED, permute: bool = False
) -> Beside[Found]:
    """A figure of latents, and the same of Gaussian noise of their number: most figures depend on it.

    Args:
        figure: (n, C, h, w) -> what is to be compared.
        latents: (n, C, h, w), finite floats on any device.
        seed: of the noise, and of the permutation.
        permute: also for `permuted` latents.

    Raises:
        TypeError, ValueError: latents that cannot be used, or what `figure` raises.
    """
    x = checked("latents", latents)
    null = figure(permuted(x, seed)) if permute else None
    return Beside(figure(x), figure(noise_beside(x, seed)), null)


def gaussian(shape: Sequence[int], seed: int = SEED) -> torch.Tensor:
    """Standard normal noise of a shape, float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def noise_beside(latents: torch.Tensor, seed: int = SEED) -> torch.Tensor:
    """Gaussian noise of the latents' shape and number."""
    return gaussian(latents.shape, seed + APART)


def permuted(latents: torch.Tensor, seed: int = SEED) -> torch.Tensor:
    """Every element of the latents shuffled over the batch by itself: the same values, nothing that binds them.

    Noise has Gaussian values, latents need not. Where their tails are longer, this null is the fairer one.

    Args:
        latents: (n, C, h, w), finite floats on any device.
        seed: of the permutations.

    Returns:
        (n, C, h, w) on the CPU, in the latents' dtype.
    """
    x = checked("latents", latents)
    generator = torch.Generator().manual_seed(seed)
    flat = x.flatten(1)
    shuffled = torch.empty_like(flat)
    for start in range(0, flat.shape[1], COLUMNS):
        part = flat[:, start : start + COLUMNS]
        order = torch.rand(part.shape, generator=generator, device="cpu").argsort(0)
        shuffled[:, start : start + COLUMNS] = part.gather(0, order)
    return shuffled.reshape(x.shape)


def checked(name: str, x: Any, least: int = 1) -> torch.Tensor:
    """Latents (n, C, h, w) on the CPU, in their own dtype.

    Raises:
        TypeError: no tensor.
        ValueError: not four dimensions, empty, no real floats, not finite, on the meta device, fewer than `least`.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor (n, C, h, w), got {type(x).__name__}")
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (n, C, h, w) with none of them 0, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be real floats, got {x.dtype}; convert them with .float()")
    if x.device.type == "meta":
        raise ValueError(f"{name} lie on the meta device and have no values; load them on the CPU")
    if len(x) < least:
        raise TooSmallError(f"needs at least {least} {name}, got {len(x)}; give more of one shape")
    x = x.detach().cpu()
    bad = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"{name} must be finite; number {shown} of {len(x)} (from 0) has NaN or infinity: leave it out"
        )
    return x


def alike(name: str, x: Any, other: str, like: torch.Tensor) -> torch.Tensor:
    """`checked`, and of the shape of others.

    Raises:
        TypeError, ValueError: as `checked`, or another shape.
    """
    x = checked(name, x)
    if x.shape != like.shape:
        raise ValueError(f"{name} must have the shape of the {other}, {tuple(like.shape)}, got {tuple(x.shape)}")
    return x


def scipy_stats() -> Any:
    """scipy.stats, taken along only when a figure needs it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(f'analysis needs scipy: {error} (pip install "invfast[analysis]")') from error
    return stats


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.as_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
