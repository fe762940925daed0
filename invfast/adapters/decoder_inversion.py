"""Latents by inverting the decoder: the z that a picture was decoded from, which the encoder only comes near.

    y_k = z_k + m (z_k - z_{k-1}),    z_{k+1} = y_k - r (E(D(y_k)) - E(x)),    z_0 = E(x)

Hong et al., "Gradient-free Decoder Inversion in Latent Diffusion Models", NeurIPS 2024 (arXiv 2409.18442): the forward
step method, and with m > 0 its inertial form. It asks the autoencoder alone and differentiates nothing. Of a picture
that no decoder made there is no such z: its residual stays, and its reconstruction is what D makes of the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Adapter

Again = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class DecoderInversion:
    """How images become latents, where they are pictures that this very autoencoder decoded.

    Args:
        iterations: decodings and encodings of each image, at least 1; one is the encoder's own latents, measured.
        step: r, above 0 and at most 2. Large ones may diverge; what is returned is then an early iterate.
        momentum: m, in [0, 1). What counts is r / (1 - m): on the bundled model step .5 with momentum .5 gets to the
            same latents in half the iterations, and leaves less room for autoencoders that are steeper.

    Raises:
        ValueError: a value outside its range.
    """

    iterations: int = 50
    step: float = 0.1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, Integral) or isinstance(self.iterations, bool) or self.iterations < 1:
            raise ValueError(f"DecoderInversion iterations must be an integer of at least 1, got {self.iterations!r}")
        if not isinstance(self.step, Real) or not 0 < self.step <= 2:
            raise ValueError(f"DecoderInversion step must lie in (0, 2], got {self.step!r}")
        if not isinstance(self.momentum, Real) or not 0 <= self.momentum < 1:
            raise ValueError(f"DecoderInversion momentum must lie in [0, 1), got {self.momentum!r}")


def chosen(encode: str | DecoderInversion) -> DecoderInversion | None:
    """How images become latents, by name or settings; None for the encoder alone.

    Raises:
        TypeError, ValueError: neither.
    """
    if isinstance(encode, DecoderInversion):
        return encode
    if not isinstance(encode, str):
        raise TypeError(f"encode must be 'encoder', 'decoder' or a DecoderInversion, got {type(encode).__name__}")
    if encode not in ("encoder", "decoder"):
        raise ValueError(f"unknown encode {encode!r}; expected 'encoder', 'decoder' or a DecoderInversion")
    return DecoderInversion() if encode == "decoder" else None


def check(model: Adapter, image: Any) -> None:
    """Raises ValueError where there is no decoder to invert, or nothing that it decoded."""
    if "vae" not in model.read:
        raise ValueError(
            f"{type(model.pipe).__name__} works on the pixels themselves and has no decoder to invert; leave out encode"
        )
    if model.are_latents(image):
        raise ValueError("encode='decoder' finds latents of pictures, and latents were given; leave it out, or decode")


def refined(model: Adapter, latents: torch.Tensor, how: DecoderInversion) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Latents of pictures whose encodings are given, (B, C, h, w), and each image's residual, as `inverted`.

    Raises:
        FloatingPointError: the VAE's output is not finite; a smaller step may help.
    """
    found, residual = inverted(Autoencoder.of(model).encoded_again, latents, how)
    return found, tuple(residual.double().tolist())


def inverted(again: Again, target: torch.Tensor, how: DecoderInversion) -> tuple[torch.Tensor, torch.Tensor]:
    """The iterate y with the least |E(D(y)) - E(x)| / |E(x)|, each image's own, and that residual, (B,).

    Args:
        again: z -> E(D(z)), each image by itself.
        target: E(x), (B, C, h, w).
    """
    before = z = best = target
    size = target.flatten(1).norm(dim=1).clamp_min(torch.finfo(target.dtype).tiny)
    least = torch.full_like(size, torch.inf)
    for _ in range(how.iterations):
        y = z + how.momentum * (z - before)
        gap = again(y) - target
        residual = gap.flatten(1).norm(dim=1) / size
        nearer = residual < least
        best = torch.where(nearer.reshape(-1, 1, 1, 1), y, best)
        least = torch.where(nearer, residual, least)
        before, z = z, y - how.step * gap
    return best, least
