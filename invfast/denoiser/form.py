"""What a family says of its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from invfast.denoiser.precompute import EMBEDS, MASK


def _as_it_is(module: torch.nn.Module) -> torch.nn.Module:
    return module


@dataclass(frozen=True)
class Form:
    """What a network is like, beside its weights.

    Args:
        channels: of the latents it takes, (B, channels, h, w).
        factor: sides of latents that are multiples of it take one path through the network, whatever their length; 1
            where every size is its own.
        flat: makes of a private network one that is called (x, t, **static inputs), each a plain tensor, and returns
            a tuple, its output first; what is nested is put together inside, where runtimes and exports do not see it.
        in_float: what int8 leaves in floating point, patterns of the names of its parts.
        repeats: whether a text whose tokens all occur twice says the same to it, as where nothing else is attended to.
        refused: runtimes that cannot run it, and why, as sentences.
        uncalibrated: why int8 ranges cannot be measured for it, as a sentence; None where they can.
        combine: makes one output of both branches' under guidance, (conditional, unconditional, scale (B,)) -> (B, C,
            h, w), where that is no weighted sum; the scale is then the static input "guidance", which the network does
            not see. None leaves both to the rows.
    """

    channels: int
    factor: int = 1
    flat: Callable[[torch.nn.Module], torch.nn.Module] = _as_it_is
    in_float: tuple[str, ...] = ()
    repeats: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    uncalibrated: str | None = None
    combine: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None


def axes(inputs: Mapping[str, torch.Tensor], factor: int) -> dict[str, dict[int, int]]:
    """Of each input the axes that any length may take, and what that is a multiple of.

    Samples; tokens of the text and of its mask; the sides of "x", where they are multiples of the factor. Not the time
    "t".
    """
    found = {name: {0: 1} | ({1: 1} if name in (EMBEDS, MASK) else {}) for name in inputs}
    even = factor > 1 and all(side % factor == 0 for side in inputs["x"].shape[2:])
    return {**found, "x": {0: 1} | ({2: factor, 3: factor} if even else {}), "t": {}}
