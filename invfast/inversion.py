"""The result of `invert`: the latents, everything needed to go back, and how the run went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from invfast.schedule import Schedule


@dataclass(frozen=True)
class Stats:
    """How a pass over the grid went.

    Args:
        evaluations: network evaluations of each image; under guidance one evaluation runs two samples.
        samples: samples the network ran over the whole batch, those of images that were already done included.
        seconds: wall time of the pass, encoding and decoding left out.
        residual: (steps, B) relative residual |f(y) - y| / |f(y)| with which each step of each image ended, on the CPU;
            None for methods that do not measure one.
        runtime, dtype, device: where the network ran, as used, not as asked for.
        kernels: implementation of the updates between evaluations.
    """

    evaluations: tuple[int, ...]
    samples: int
    seconds: float
    residual: torch.Tensor | None
    runtime: str
    dtype: torch.dtype
    device: str
    kernels: str = "reference"


@dataclass
class Inversion:
    """Latents found by `invert`, with what `reconstruct` needs to return from them.

    Args:
        latents: (B, C, h, w) at node `node`: x_T, the noise, when the run went through. float32 (float64 for a float64
            network), on the network's device.
        init_latents: (B, C, h, w) the encoded images x_0.
        state: what else the method keeps, by name (ForwardStart its noise).
        schedule: the grid, shared by both directions.
        method: the Method instance.
        node: how far the run came, `schedule.num_steps` unless it was interrupted.
        prompt, negative_prompt: one text an image; None where embeddings were given instead.
        guidance_scale: as given.
        stats: how the run went.
        trajectory: (node + 1, B, C, h, w) on the CPU, x_0 first, where it was asked for. With ForwardStart(K) it begins
            at the latent after the jump.
        provenance: names, versions and digests, for the record.
    """

    latents: torch.Tensor
    init_latents: torch.Tensor
    state: dict[str, torch.Tensor]
    schedule: Schedule
    method: Any
    node: int
    prompt: list[str] | None
    negative_prompt: list[str] | None
    guidance_scale: float
    stats: Stats
    trajectory: torch.Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_tuple(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents, init_latents), what `return_dict=False` returns."""
        return self.latents, self.init_latents
