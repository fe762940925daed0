"""Images to latents and back, through the autoencoder of a latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from invfast import images
from invfast.denoiser import Reading
from invfast.denoiser.clone import private
from invfast.locks import lock_of
from invfast.store import beside

if TYPE_CHECKING:
    from invfast.adapters.base import Adapter


class Autoencoder:
    """A VAE in one call; the caller's stays as it is.

    Args:
        read: it, as it is in this call.
        factor: pixels to one latent, along a side.
        device: where the pipeline runs it.
        dtype: of latents.
        layout: of a private copy's convolution weights.
    """

    def __init__(
        self, read: Reading, factor: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        self.read, self.factor, self.device, self.latent_dtype, self.layout = read, factor, device, dtype, layout
        self.config = read.module.config
        self.frames = "temperal_downsample" in self.config
        """Whether it is a video's, of one frame here: it keeps its frames in itself while it runs."""

    @classmethod
    def of(cls, model: Adapter) -> Autoencoder:
        """The one of a latent diffusion pipeline."""
        read, layout = model.read["vae"], model.denoiser.runtime.memory_format(model.device)
        factor = getattr(model.pipe, "vae_scale_factor", None)
        if factor is None:
            factor = 2 ** (len(read.module.config.block_out_channels) - 1)
        return cls(read, factor, model.device, model.latent_dtype, layout)

    @torch.no_grad()
    def encode(self, image: Any, height: int | None, width: int | None, halvings: int = 1) -> torch.Tensor:
        """x_0 (B, C, h, w): the posterior mean, shifted and scaled as the diffusion model was trained.

        Sides are multiples of `halvings` latents.

        Raises:
            FloatingPointError: the output is not finite.
        """
        return self._encoded(images.to_pixels(image, self.factor * halvings, height, width))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32.

        Raises:
            FloatingPointError: the output is not finite.
        """
        return (self._decoded(latents).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encoded_again(self, latents: torch.Tensor) -> torch.Tensor:
        """E(D(z)): what the encoder makes of the picture that latents are decoded to, none rounded to 8 bits.

        Raises:
            FloatingPointError: the output is not finite.
        """
        return self._encoded(self._decoded(latents).clamp(-1, 1))

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        """x_0 of pixels in [-1, 1]."""
        vae, dtype = self._ready()
        with lock_of(vae) if self.frames else nullcontext():
            x = _one_by_one(
                lambda each: self._flat(_mean(vae.encode(self._framed(each)))), pixels.to(self.device, dtype)
            )
        _check_finite(x, "encoding")
        shift, scale = self._normalisation()
        return (x.to(self.latent_dtype) - shift) * scale

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels of x_0, mostly in [-1, 1], in the VAE's dtype."""
        vae, dtype = self._ready()
        shift, scale = self._normalisation()
        x = latents / scale + shift
        with lock_of(vae) if self.frames else nullcontext():
            pixels = _one_by_one(
                lambda each: self._flat(vae.decode(self._framed(each), return_dict=False)[0]), x.to(dtype)
            )
        _check_finite(pixels, "decoding")
        return pixels

    def _framed(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(2) if self.frames else x

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0] if self.frames else x

    def _ready(self) -> tuple[torch.nn.Module, torch.dtype]:
        """The VAE and the dtype it computes in: its own, but float32 for a float16 one that overflows or is on a CPU.

        Under hooks, or quantised, it stays what it is.
        """
        read, vae = self.read, self.read.module
        if read.as_it_is:
            return vae, read.dtype
        upcast = self.config.get("force_upcast", True)
        half = read.dtype == torch.float16 and (self.device.type == "cpu" or upcast)
        dtype, layout = torch.float32 if half else read.dtype, self.layout
        return read.keep(
            ("vae", dtype, layout), lambda: private(vae, dtype, layout), lambda made: beside(made, read.addresses)
        ), dtype

    def _normalisation(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """What is taken off an image's latents, and what they are multiplied by, for one channel or all."""
        mean, std = (self.config.get(name) for name in ("latents_mean", "latents_std"))
        scale = self.config.get("scaling_factor", 1.0)
        if mean is None or std is None:
            return self.config.get("shift_factor") or 0.0, scale
        mean, std = (
            torch.tensor(each, device=self.device, dtype=self.latent_dtype).reshape(1, -1, 1, 1) for each in (mean, std)
        )
        return mean, scale / std


def _mean(encoded: Any) -> torch.Tensor:
    """The posterior mean of a Gaussian; what encoders without one (tiny, deeply compressing, VQ before its codes) give.

    Raises:
        TypeError: neither.
    """
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    for name in ("latents", "latent"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    raise TypeError(f"the VAE's encoder gives {type(encoded).__name__}, with neither latent_dist nor latents")


def _one_by_one(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Each alone: rounding would differ with the batch, and a batch of large images takes gigabytes."""
    return torch.cat([function(each) for each in x.split(1)])


def _check_finite(x: torch.Tensor, doing: str) -> None:
    """Raises FloatingPointError where the VAE left its range."""
    bad = [str(j + 1) for j, ok in enumerate(x.isfinite().flatten(1).all(1).tolist()) if not ok]
    if bad:
        raise FloatingPointError(
            f"the VAE's output became non-finite {doing} image {', '.join(bad[:8])} of {len(x)}, dtype "
            f"{str(x.dtype).removeprefix('torch.')}; load the VAE in float32, or set its config's force_upcast"
        )
