"""What families have in common whose network is a transformer of a VAE's latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from invfast.adapters import door
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Adapter
from invfast.arguments import each

ONNX = ("onnxruntime", "onnxruntime_tensorrt", "tensorrt", "tensorrt_rtx")
EXPORTS = ("openvino", "openvino_gpu", *ONNX)
"""Runtimes that read an ONNX file, and all that run a graph exported from a network."""


class Transformer(Adapter):
    """Latents are whole patches of a VAE's.

    A subclass sets what is as here.
    """

    network: ClassVar[str]
    """The class of its transformer in diffusers."""
    patch: ClassVar[int] = 2
    """Sides of latents are multiples of it."""
    second_texts: ClassVar[tuple[str, ...]] = ()
    """Names of the texts for its later text encoders."""

    @property
    def transformer(self) -> torch.nn.Module:
        """The network, without a wrapper of torch.compile."""
        network = self.pipe.transformer
        return getattr(network, "_orig_mod", network)

    def unfit(self) -> list[str | None]:
        network, channels = self.transformer, door.channels(self.pipe)
        if self.network not in {kind.__name__ for kind in type(network).__mro__}:
            return [f"its transformer is a {type(network).__name__}; load one of class {self.network}"]
        if self.channels != channels:
            own = self.channels
            return [f"its network takes {own} channels and its latents have {channels}; load the parts of one model"]
        return [door.patched(self.pipe)]

    @property
    def channels(self) -> int:
        """Of the latents that its network takes."""
        return self.transformer.config.in_channels

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": self.pipe.transformer, "vae": self.pipe.vae}

    def encoders(self) -> dict[str, Any]:
        return {name: getattr(self.pipe, name, None) for name in ("text_encoder", "tokenizer")}

    def check(self, batch: int, more: Mapping[str, Any]) -> dict[str, Any]:
        found = super().check(batch, more)
        texts = {*self.second_texts, *(f"negative_{name}" for name in self.second_texts)}
        return {name: each(value, batch, name) if name in texts else value for name, value in found.items()}

    def encode(self, image: Any, height: int | None, width: int | None) -> torch.Tensor:
        """x_0 (B, C, h, w), sides multiples of a patch; latents pass through, checked.

        Raises:
            ValueError: latents that are cut across a patch.
            FloatingPointError: the VAE's output is not finite.
        """
        latents = self.latents_of(image, height, width)
        if latents is None:
            return Autoencoder.of(self).encode(image, height, width, self.patch)
        if any(side % self.patch for side in latents.shape[2:]):
            raise ValueError(
                f"this network takes latents in patches of {self.patch} x {self.patch}, got {tuple(latents.shape)}; "
                f"pass sides that are multiples of {self.patch}"
            )
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels in [0, 1], float32.

        Raises:
            FloatingPointError: the VAE's output is not finite.
        """
        return Autoencoder.of(self).decode(latents)

    def guidance(self, scale: float) -> float:
        return scale if scale > 1 else 1.0


class Timed(torch.nn.Module):
    """A private transformer called like a UNet, (x, t, **static): one time for all rows, or one each.

    Args:
        network: the private one.
        ask: (network, x, times (B,), static) -> its output, of x's shape.
    """

    def __init__(self, network: torch.nn.Module, ask: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.network, self.ask = network, ask

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, return_dict: bool = False, **static: torch.Tensor
    ) -> tuple[torch.Tensor]:
        return (self.ask(self.network, x, t.reshape(-1).expand(x.shape[0]), **static),)
