"""What families have in common whose network is a transformer trained on rectified flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from invfast import flows
from invfast.adapters.transformer import Transformer
from invfast.denoiser import Form

PROJECTIONS = ("image_proj", "encoder_hid_proj")
"""What a network has where an IP-Adapter is loaded."""
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class RectifiedFlow(Transformer):
    """The grid is the scheduler's own, shifted as the pipeline shifts it."""

    longest: ClassVar[float] = 1.15
    """The shift at most, where the scheduler's config says none, as the pipeline has it."""
    spaced: ClassVar[bool] = False
    """Whether the pipeline gives the scheduler the sigmas to shift."""

    def unfit(self) -> list[str | None]:
        name = type(self.pipe.scheduler).__name__
        if not flows.is_flow(self.pipe.scheduler):
            return [f"its scheduler {name} is none of rectified flow; use FlowMatchEulerDiscreteScheduler"]
        found = super().unfit()
        if any(getattr(self.transformer, part, None) is not None for part in PROJECTIONS):
            found.append("its network needs image embeddings, as with an IP-Adapter; call pipe.unload_ip_adapter()")
        return found

    def shifted(self, steps: int, shape: torch.Size) -> dict[str, Any]:
        config, tokens = self.pipe.scheduler.config, shape[2] * shape[3] // self.patch**2
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", self.longest)
        slope = (most - least) / (high - low)
        spaced = self.spaced and flows.takes_sigmas(self.pipe.scheduler)
        return {"mu": tokens * slope + (least - slope * low), "sigmas": linspaced(steps) if spaced else None}


def form(channels: int, flat: Callable[[torch.nn.Module], torch.nn.Module], **more: Any) -> Form:
    """Of a network on rectified flow whose text stands beside the image, or under a mask."""
    return Form(channels, flat=flat, repeats=False, **more)


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
