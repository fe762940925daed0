"""Where the network runs. Each runtime knows torch and its own library, no method and no schedule."""

from __future__ import annotations

from invfast.runtimes.base import Network, Runtime, Spec
from invfast.runtimes.eager import Eager

RUNTIMES: dict[str, Runtime] = {"eager": Eager()}


def resolve(name: str) -> Runtime:
    """The runtime of a name; "auto" picks, once, before the loop, and the result's stats say what was picked.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the runtime was asked for by name and cannot run here; says why and what to install.
    """
    if name == "auto":
        return RUNTIMES["eager"]
    if not isinstance(name, str) or name not in RUNTIMES:
        raise ValueError(f"unknown runtime {name!r}; expected 'auto' or one of {', '.join(map(repr, RUNTIMES))}")
    reason = RUNTIMES[name].unavailable()
    if reason:
        raise RuntimeError(f"runtime {name!r} is unavailable: {reason}")
    return RUNTIMES[name]


__all__ = ["RUNTIMES", "Network", "Runtime", "Spec", "resolve"]
