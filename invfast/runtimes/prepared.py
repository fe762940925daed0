"""Networks that are ready to run, kept from one call to the next: what a runtime exports is slow to make."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from invfast.runtimes.base import Network, Runtime, Spec

KEPT = 2
"""How many; each may hold a copy of a network's weights."""

_networks: OrderedDict[tuple[Any, ...], Network] = OrderedDict()


def prepared(
    runtime: Runtime, make: Callable[[], torch.nn.Module], example_inputs: Mapping[str, torch.Tensor], spec: Spec
) -> Network:
    """The runtime's network for a module, from the last calls where it is the same one for the same inputs."""
    if not runtime.exports:
        return runtime.prepare(make(), example_inputs, spec)
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in example_inputs.items())
    calibration = spec.calibration and repr(spec.calibration.says)
    network = spec.identity(), spec.precomputed, (spec.numerics, *spec.addresses()) if runtime.shares else ()
    key = (runtime.name, *network, spec.device, spec.dtype, calibration, shapes)
    if key not in _networks:
        while len(_networks) >= KEPT:  # before the new one is made, so that there are never more at once
            _networks.popitem(last=False)
        _networks[key] = runtime.prepare(make(), example_inputs, spec)
    _networks.move_to_end(key)
    return _networks[key]


def prepared_networks() -> Mapping[tuple[Any, ...], Network]:
    """What is kept now."""
    return _networks


def release() -> None:
    """Forgets every network that is kept, and with it its memory."""
    _networks.clear()
