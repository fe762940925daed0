"""The protocol of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch


class Calibration(NamedTuple):
    """What an int8 network's ranges are measured on.

    Args:
        says: plain values that decide the samples, for the key of what is made from them.
        samples: what the network is called with, by name, one image each; made when they are asked for.
    """

    says: Mapping[str, Any]
    samples: Callable[[], list[dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class Spec:
    """What a network is prepared for.

    Args:
        device: where the pipeline runs.
        dtype: what the network computes in.
        identity: the network's digest (`fingerprint.Fingerprint.exact`), computed when it is asked for.
        calibration: for dtype int8.
        addresses: where the network's weights lie, (address, ...) each, computed when they are asked for.
        precomputed: parts of the network that were cut out of it.
        numerics: how torch is set to compute float32, in words; what is compiled or recorded was so.
        owner: the caller's module, whose memory a runtime may read.
        parameters: how many it has.
        lasts: whether `identity` and `addresses` say all of it, so that a private module serves later calls too.
        axes: of each input the axes that any length may take, and what that is a multiple of; where the sides of "x"
            are none of them, every size is a network of its own.
        in_float: what int8 leaves in floating point, patterns of the names of its parts.
    """

    device: torch.device
    dtype: torch.dtype
    identity: Callable[[], str]
    calibration: Calibration | None = None
    addresses: Callable[[], tuple[Any, ...]] = tuple
    precomputed: tuple[str, ...] = ()
    numerics: str = ""
    owner: Any = None
    parameters: int = 0
    lasts: bool = False
    axes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    in_float: tuple[str, ...] = ()

    @property
    def any_size(self) -> bool:
        """Whether one network serves latents of many sizes."""
        return len(self.axes.get("x", ())) > 1


@dataclass(frozen=True)
class Traits:
    """What a runtime's networks can do and need.

    Args:
        dynamic_batch: whether a prepared network takes any batch size, so that images that are done can be left out.
        exports: whether it turns the network into something of its own: slow once, kept for later calls, blind to
            hooks.
        shares: whether what it makes reads the given weights where they lie, in place of a copy.
        capturable: whether its networks run on torch's current stream and may be recorded in a CUDA graph.
        precomputes: whether "t" may be a row of numbers, (1, n), in place of a time: what `denoiser.precompute` makes
            of it.
        batched_time: whether a prepared network takes any number of rows with a time each, t (rows,).
    """

    dynamic_batch: bool = True
    exports: bool = True
    shares: bool = False
    capturable: bool = False
    precomputes: bool = False
    batched_time: bool = False


class Network(Protocol):
    """(x, t, **static inputs) -> output of x's shape; all but t in the runtime's input dtype, x (B, C, h, w).

    The result is the caller's to keep: a runtime with output buffers of its own hands out copies. t is 0-d.
    Any number of threads may call it at once. Where CUDA graphs would hold what a call computes in, it has a method
    `caller` that gives each run a network of its own.
    """

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor: ...


class Runtime(Protocol):
    """An engine that can run a network."""

    name: str
    traits: Traits

    def unavailable(self) -> str | None:
        """Why it cannot run here, with the install command; None when it can."""

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot compute in this dtype for a pipeline on this device; None when it can."""

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """The layout it wants its convolution weights in."""

    def fuses(self, device: torch.device) -> bool:
        """Whether it gains from projections of one input made one (`denoiser.fused`)."""

    def weights_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """The dtype `prepare` wants the module in, to compute in `dtype`; None where any will do."""

    def input_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype its networks take x and the static inputs in, and answer in, to compute in `dtype`."""

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        """A callable for a module that is already in the weights' dtype and this runtime's layout.

        `example_inputs` are what it will be called with: "x", "t" and every static input, full batch, right dtypes.
        """


class Exporting:
    """What the runtimes share that make something of their own of a network, and read its weights as they are."""

    traits = Traits()

    def memory_format(self, device: torch.device) -> torch.memory_format:
        return torch.preserve_format

    def fuses(self, device: torch.device) -> bool:
        return False

    def weights_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        return None

    def input_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype
