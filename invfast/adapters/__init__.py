"""What is particular to a family of pipelines: its parts, how images become latents and texts the network's inputs."""

from __future__ import annotations

from typing import Any

from invfast.adapters.base import Adapter, Prompts
from invfast.adapters.stable_diffusion import StableDiffusion
from invfast.adapters.unconditional import Unconditional

ADAPTERS: tuple[type[Adapter], ...] = (StableDiffusion, Unconditional)


def resolve(pipe: Any) -> type[Adapter]:
    """The adapter of a pipeline.

    Raises:
        TypeError: no adapter knows it.
    """
    for adapter in ADAPTERS:
        if adapter.supports(pipe):
            return adapter
    raise TypeError(
        f"pipeline {type(pipe).__name__} is not supported; expected one of: "
        + "; ".join(adapter.description for adapter in ADAPTERS)
    )


__all__ = ["ADAPTERS", "Adapter", "Prompts", "StableDiffusion", "Unconditional", "resolve"]
