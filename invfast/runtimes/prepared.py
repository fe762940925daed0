"""Networks that are ready to run, kept from one call to the next in the store: what is slow to make is made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from invfast.runtimes.base import Network, Runtime, Spec
from invfast.store import READY, Made, beside


def prepared(
    runtime: Runtime, make: Callable[[], torch.nn.Module], example_inputs: Mapping[str, torch.Tensor], spec: Spec
) -> Network:
    """The runtime's network for a module, from the last calls where it is the same one for the same inputs.

    It serves any number of threads at once. A network with a method `caller` gives each run a way in of its own.
    """
    traits = runtime.traits
    if not traits.exports and not spec.lasts:
        return runtime.prepare(make(), example_inputs, spec)

    def anew() -> Made:
        module = make()
        network = runtime.prepare(module, example_inputs, spec)
        size = beside(module, spec.addresses()) if traits.shares else expected
        owner = spec.owner if traits.shares else None
        return Made(network, lambda: size, spec.device, owner, not traits.exports)

    expected = spec.parameters * spec.dtype.itemsize if traits.exports else 0
    found = READY.take(key(runtime, example_inputs, spec), anew, expected, spec.device)
    caller = getattr(found, "caller", None)
    return found if caller is None else caller()


def ready(runtime: Runtime, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> bool:
    """Whether `prepared` would find this network and have nothing to make."""
    return READY.has(key(runtime, example_inputs, spec))


def key(runtime: Runtime, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> tuple[Any, ...]:
    """All that shapes a network: where its weights lie and how torch computes only where it runs on them."""
    network = spec.identity(), spec.precomputed, (spec.numerics, *spec.addresses()) if runtime.traits.shares else ()
    if not runtime.traits.exports:  # any shape
        return ("network", runtime.name, *network, spec.device, spec.dtype)
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in example_inputs.items())
    calibration = spec.calibration and repr(spec.calibration.says)
    return ("network", runtime.name, *network, spec.device, spec.dtype, calibration, shapes)
