"""What families have in common whose network is a transformer trained on rectified flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from invfast import flows
from invfast.adapters import door
from invfast.adapters.autoencoder import Autoencoder
from invfast.adapters.base import Adapter
from invfast.arguments import each

UNCALIBRATED = "its ranges are measured along a grid of betas, and rectified flow has none; take bfloat16"
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class RectifiedFlow(Adapter):
    """Latents are whole patches of a VAE's; the grid is the scheduler's own, shifted as the pipeline shifts it.

    A subclass sets what is as here.
    """

    network: ClassVar[str]
    """The class of its transformer in diffusers."""
    patch: ClassVar[int] = 2
    """Sides of latents are multiples of it."""
    longest: ClassVar[float] = 1.15
    """The shift at most, where the scheduler's config says none, as the pipeline has it."""
    second_texts: ClassVar[tuple[str, ...]] = ()
    """Names of the texts for its later text encoders."""

    @property
    def transformer(self) -> torch.nn.Module:
        """The network, without a wrapper of torch.compile."""
        network = self.pipe.transformer
        return getattr(network, "_orig_mod", network)

    def unfit(self) -> list[str | None]:
        network, channels = self.transformer, door.channels(self.pipe)
        if type(network).__name__ != self.network:
            return [f"its transformer is a {type(network).__name__}; load one of class {self.network}"]
        if not flows.is_flow(self.pipe.scheduler):
            name = type(self.pipe.scheduler).__name__
            return [f"its scheduler {name} is none of rectified flow; use FlowMatchEulerDiscreteScheduler"]
        if self.channels != channels:
            return [f"its network takes {self.channels} channels and its latents have {channels}; load a text model"]
        return [door.patched(self.pipe)]

    @property
    def channels(self) -> int:
        """Of the latents that its network takes."""
        return self.transformer.config.in_channels

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"network": self.pipe.transformer, "vae": self.pipe.vae}

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

    def shifted(self, steps: int, shape: torch.Size) -> dict[str, Any]:
        config, tokens = self.pipe.scheduler.config, shape[2] * shape[3] // self.patch**2
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", self.longest)
        slope = (most - least) / (high - low)
        return {"mu": tokens * slope + (least - slope * low)}


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


def linspaced(steps: int) -> list[float]:
    """Sigmas before the shift as most pipelines of flow give them, steps / steps .. 1 / steps."""
    return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()


def packed(x: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) as tokens of 2 x 2 patches, (B, h/2 * w/2, 4 C)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What `packed` made, as latents of the shape of `like`."""
    b, c, h, w = like.shape
    return tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
