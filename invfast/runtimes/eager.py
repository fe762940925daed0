"""torch as it is: the module called directly."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from invfast.runtimes.base import Network, Spec, Traits


class Torch:
    """What eager and compiled torch share: any device and dtype, weights and inputs in the dtype of the computation."""

    def unavailable(self) -> str | None:
        return None

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype.is_floating_point:
            return None
        return f"torch computes networks in floating point, not in {dtype}; for int8 take runtime='openvino'"

    def memory_format(self, device: torch.device) -> torch.memory_format:
        # oneDNN's convolutions took 2.0 to 2.8 times as long from contiguous weights (bundled UNet, batches of 8, 16).
        # cuDNN transposes them at every call, a third of the GPU's time: SD1.5 on an H100 took 9.36 ms a step so, 7.08
        # with channels_last weights; compiled 5.24 and 4.45.
        return torch.channels_last if device.type in ("cpu", "cuda") else torch.preserve_format

    def fuses(self, device: torch.device) -> bool:
        return False

    def weights_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def input_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype


class Eager(Torch):
    """Always there; any shape, any batch."""

    name = "eager"
    traits = Traits(exports=False, shares=True, capturable=True, precomputes=True, batched_time=True)

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        def network(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
            return module(x, t, **static_inputs, return_dict=False)[0]

        return network
