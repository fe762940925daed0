"""Networks that are ready to run, kept from one call to the next: what a runtime exports is slow to make.

Threads share them. One that asks for a network that another is making waits for it; one that asks for a network that
is there waits for nothing. A network that is forgotten while it is used lives as long as its users.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch

from invfast.runtimes.base import Network, Runtime, Spec

KEPT = 2
"""How many; each may hold a copy of a network's weights."""

Key = tuple[Any, ...]
_networks: OrderedDict[Key, Network] = OrderedDict()
_making: WeakValueDictionary[Key, threading.RLock] = WeakValueDictionary()
"""Held by who makes a network; gone with the last who waits for it."""
_lock = threading.Lock()
"""Held for look-ups, never while a network is made."""


def prepared(
    runtime: Runtime, make: Callable[[], torch.nn.Module], example_inputs: Mapping[str, torch.Tensor], spec: Spec
) -> Network:
    """The runtime's network for a module, from the last calls where it is the same one for the same inputs.

    It serves any number of threads at once. A network with a method `caller` gives each run a way in of its own.
    """
    if not runtime.exports:
        return runtime.prepare(make(), example_inputs, spec)
    key = _key(runtime, example_inputs, spec)
    found = _kept(key)
    if found is None:
        with _lock:
            making = _making.setdefault(key, threading.RLock())
        with making:
            found = _kept(key)
            if found is None:  # not made by who held this lock before, or that failed
                _drop_to(KEPT - 1)  # before the new one is made, so that there are never more at once
                found = runtime.prepare(make(), example_inputs, spec)
                _keep(key, found)
    caller = getattr(found, "caller", None)
    return found if caller is None else caller()


def ready(runtime: Runtime, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> bool:
    """Whether `prepared` would find this network and have nothing to make."""
    with _lock:
        if not any(key[0] == runtime.name for key in _networks):
            return False  # before the network is read for its identity
    return _kept(_key(runtime, example_inputs, spec)) is not None


def prepared_networks() -> Mapping[Key, Network]:
    """What is kept now."""
    with _lock:
        return dict(_networks)


def release() -> None:
    """Forgets every network that is kept, and with it its memory."""
    _drop_to(0)


def _key(runtime: Runtime, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Key:
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in example_inputs.items())
    calibration = spec.calibration and repr(spec.calibration.says)
    network = spec.identity(), spec.precomputed, (spec.numerics, *spec.addresses()) if runtime.shares else ()
    return (runtime.name, *network, spec.device, spec.dtype, calibration, shapes)


def _kept(key: Key) -> Network | None:
    with _lock:
        if key in _networks:
            _networks.move_to_end(key)
        return _networks.get(key)


def _keep(key: Key, network: Network) -> None:
    _drop_to(KEPT - 1)  # others may have come while it was made
    with _lock:
        _networks[key] = network


def _drop_to(count: int) -> None:
    """Forgets the longest unused; they end outside the lock, for what they take along may ask for it."""
    with _lock:
        dropped = [_networks.popitem(last=False) for _ in range(len(_networks) - count)]
    dropped.clear()
