"""The protocol of a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Spec:
    """What a network is prepared for: device and dtype of its weights and of what it is given."""

    device: torch.device
    dtype: torch.dtype


class Network(Protocol):
    """(x, t, **static inputs) -> output of x's shape; x (B, C, h, w) and the result in the spec's dtype.

    The result is the caller's to keep: a runtime with output buffers of its own hands out copies. t is 0-d.
    """

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor: ...


class Runtime(Protocol):
    """An engine that can run a network."""

    name: str
    dynamic_batch: bool
    """Whether a prepared network takes any batch size, so that images that are done can be left out."""

    def unavailable(self) -> str | None:
        """Why it cannot run here, with the install command; None when it can."""

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """The layout it wants its convolution weights in."""

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        """A callable for a module that is already in the spec's dtype and this runtime's layout.

        `example_inputs` are what it will be called with: "x", "t" and every static input, full batch, right dtypes.
        """
