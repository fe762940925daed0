"""How exact a run of the network must be: as exact as the eager run of its dtype, both beside float64.

    ||got - exact|| <= 2 ||eager - exact||

How far rounding moves a run depends on the machine's instructions and threads, and on how much the network amplifies.
Eager meets the same on the same machine, so the rule knows neither; two rounded runs are never held to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from toy import distance

FLOOR = 4
"""Roundings that are always allowed: where eager by luck is float64's result rounded, its error says little."""

Tensors = torch.Tensor | Sequence[torch.Tensor]


def error(found: Tensors, exact: Tensors) -> float:
    """Relative distance to `exact`; of several results the root mean square, for one alone may be right by luck."""
    pairs = [(found, exact)] if isinstance(found, torch.Tensor) else list(zip(found, exact, strict=True))
    assert all(a.shape == b.shape and b.dtype == torch.float64 for a, b in pairs)
    return (sum(distance(a, b) ** 2 for a, b in pairs) / len(pairs)) ** 0.5


def as_exact_as_eager(got: Tensors, eager: Tensors, exact: Tensors, floor: float = FLOOR) -> None:
    """Fails where `got` is more than twice as far from `exact`, which is float64, as `eager` is; NaN is far."""
    dtype = (got if isinstance(got, torch.Tensor) else got[0]).dtype
    mine, eagers = error(got, exact), error(eager, exact)
    allowed = max(2 * eagers, floor * torch.finfo(dtype).eps)
    assert mine <= allowed, f"{mine:.2e} from float64; eager is {eagers:.2e} from it, which allows {allowed:.2e}"


def steps(call: Callable[..., Any], path: Sequence[torch.Tensor] | None = None) -> tuple[list[torch.Tensor], Any]:
    """What each step of a run found, and what the run returned; all steps but the first begin where `path` says.

    A network that amplifies rounding moves whole runs apart along one direction, by chance far or not at all. Begun
    anew from the same float32 latents, each step shows its own rounding alone.

    Args:
        call: `invert`, `reconstruct` or a diffusers pipeline, all given but the callback.
        path: the float64 run's steps; None for that run itself.
    """
    found = []

    def replace(pipe, step, t, tensors):
        own = tensors["latents"]
        found.append(own.clone())
        if path is None:
            return {"latents": own.float().to(own.dtype)}
        return {"latents": path[len(found) - 1].float().to(own.dtype)} if len(found) < len(path) else {}

    result = call(callback_on_step_end=replace)
    assert found
    assert path is None or len(found) == len(path)
    return found, result


def one_by_one(calls: Sequence[Callable[..., Any]], path: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list]:
    """`steps` of a batch's images, each by a call of its own, joined to those of a batch; and what each returned."""
    alone = [steps(call, [latents[j : j + 1] for latents in path]) for j, call in enumerate(calls)]
    return [torch.cat(each) for each in zip(*(found for found, _ in alone), strict=True)], [inv for _, inv in alone]


def steps_as_exact_as_eagers(got: Callable[..., Any], eager: Callable[..., Any], exact=None) -> tuple[Any, Any, Any]:
    """Holds the steps of a run to the rule; the results of (got, eager, exact), their last steps their own.

    Args:
        got: all given but the callback, see `steps`.
        eager: likewise; in eager, of the same network and dtype.
        exact: likewise; None for eager in float64.
    """
    path, wanted = steps(exact or partial(eager, dtype="float64"))
    plain, eagers = steps(eager, path)
    found, result = steps(got, path)
    as_exact_as_eager(found, plain, path)
    return result, eagers, wanted
