"""Several latents of one image as one sample of the network: the source and its edit, side by side in the channels.

So nothing else learns of them. Batches, guidance, runtimes that run a few samples at a time and captured graphs see a
network of more channels, and no image is ever parted from its source.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from invfast.adapters import Adapter, unets
from invfast.denoiser import Condition, Form
from invfast.denoiser.clone import as_it_is
from invfast.editing import attention
from invfast.editing.attention import Control
from invfast.store import READY

EACH, EDIT = "each_", "edit_"
"""How inputs begin that every row has its own of, (B, rows, ...), and those of the control."""
TICKS = 1024
"""A time's unit of the network's, as whole numbers: whatever the network computes in, they are compared exactly."""

_kept: weakref.WeakKeyDictionary[Any, dict[tuple, Rows]] = weakref.WeakKeyDictionary()
"""By pipeline, for what is kept of a network goes with its module. It holds a pipeline's network, not the pipeline."""
_lock = threading.Lock()
READY.also(_kept.clear)


class Rows(torch.nn.Module):
    """A network, and how many latents of an image it is to run beside each other, with what control.

    Args:
        network: the caller's, or a private one.
        rows: of one image.
        control: between their attention, None where each goes its own way.
    """

    def __init__(self, network: torch.nn.Module, rows: int, control: Control | None) -> None:
        super().__init__()
        self.network, self.rows = network, rows
        self.kind, self.layer = (control.kind, control.layer) if control else (None, None)

    @property
    def control(self) -> Control | None:
        return Control(self.kind, self.layer) if self.kind else None


class Apart(torch.nn.Module):
    """A flat network that runs every row of its samples, (B, rows * C, h, w), as a sample of its own.

    Args:
        network: the flat one, (x, t, **static) -> (output,).
        rows: of one sample.
    """

    def __init__(self, network: torch.nn.Module, rows: int) -> None:
        super().__init__()
        self.network, self.rows = network, rows

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, return_dict: bool = False, **static: torch.Tensor
    ) -> tuple[torch.Tensor]:
        latents = x.unflatten(1, (self.rows, -1)).flatten(0, 1)
        given = {n.removeprefix(EACH): value.flatten(0, 1) for n, value in static.items() if n.startswith(EACH)}
        edit = {n.removeprefix(EDIT): value for n, value in static.items() if n.startswith(EDIT)}
        times = t.reshape(-1).repeat_interleave(self.rows) if t.ndim and t.numel() > 1 else t
        if edit:
            given |= {f"{unets.CONTROL}{name}": value for name, value in _flags(edit, t).items()}
        out = self.network(latents, times, **given, return_dict=False)[0]
        return (out.unflatten(0, (-1, self.rows)).flatten(1, 2),)


def _flags(edit: Mapping[str, torch.Tensor], t: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the control reads, its limits in time turned into flags (B,)."""
    ticks = (t.reshape(-1).double() * TICKS).round().long()
    compare = {"below": torch.le, "cross": torch.gt, "self": torch.gt}
    return {name: compare[name](ticks, value) if name in compare else value for name, value in edit.items()}


def ticks(time: float) -> int:
    """A limit in time as `Apart` compares it."""
    return round(time * TICKS)


class Sided(Adapter):
    """Mixed into a family's adapter: its network on `rows` latents of an image at once."""

    rows: int
    shared: Control | None

    def parts(self) -> dict[str, torch.nn.Module]:
        found = super().parts()
        own, key = found["network"], (self.rows, self.shared)
        with _lock:
            kept = _kept.setdefault(self.pipe, {})
            if key not in kept or kept[key].network is not own:
                kept[key] = Rows(own, self.rows, self.shared)
            return {**found, "network": kept[key]}

    def form(self) -> Form:
        inner = super().form()
        why = "its samples are several latents beside each other; take another dtype"
        if inner.combine:
            raise ValueError(
                f"{type(self.pipe).__name__} combines both branches of guidance by a norm, which rows beside each "
                "other would share; edit with method='prompt'"
            )
        return replace(
            inner,
            channels=inner.channels * self.rows,
            flat=lambda module: Apart(_run(module, inner), module.rows),
            in_float=(),
            uncalibrated=why,
        )


def _run(module: Rows, inner: Form) -> torch.nn.Module:
    """The flat network of a private `Rows`, its attention under control where it has one."""
    if module.control is None:
        return inner.flat(module.network)
    return unets.Flat(attention.controlled(module.network, module.control, module.rows))


def sided(kind: type[Adapter], rows: int, control: Control | None) -> type[Adapter]:
    """A family's adapter for `rows` latents of an image."""
    return type(f"{kind.__name__}Rows", (Sided, kind), {"rows": rows, "shared": control})


def check(model: Adapter, control: Control | None, name: str) -> None:
    """Raises ValueError where the attention of a pipeline's network cannot be shared between rows."""
    if control is None:
        return
    network = getattr(model.pipe, "unet", None)
    own = getattr(network, "_orig_mod", network)
    if own is None or getattr(model.pipe, "controlnet", None) is not None:
        why = "has no UNet alone: control of attention is written for UNets without a ControlNet"
    else:
        managed = as_it_is(network)
        why = managed or attention.unfit(own)
    if why:
        raise ValueError(
            f"{name} shares attention between rows, and {type(model.pipe).__name__}'s network {why}; "
            "edit with method='prompt', or with FlowEdit on a rectified flow"
        )


def together(each: Sequence[Condition], control: Sequence[Mapping[str, torch.Tensor]] | None) -> Condition:
    """The condition of all rows of an image: each row's own, and what the control is told in both branches.

    Raises:
        ValueError: rows whose texts have other lengths.
    """
    branches: list[dict[str, torch.Tensor] | None] = []
    for j in range(2):
        found = [one[j] for one in each]
        if any(one is None for one in found):
            branches.append(None)
            continue
        shapes = [{name: value.shape for name, value in one.items()} for one in found]
        if any(one != shapes[0] for one in shapes):
            raise ValueError(
                "the prompts of an image and its edit have other lengths for this network, and their rows run as one; "
                "pass prompts of as many tokens, or edit with method='prompt'"
            )
        rows = {f"{EACH}{name}": torch.stack([one[name] for one in found], 1) for name in found[0]}
        branches.append({**rows, **({f"{EDIT}{n}": v for n, v in control[j].items()} if control else {})})
    return branches[0], branches[1]
