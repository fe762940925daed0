"""Which implementation of the ops runs: chosen once, before the loop, and named in the result.

"reference" is the definition in plain torch and runs everywhere. "cpp" is the compiled extension invfast._C, "triton"
the kernels of invfast.kernels. All three are held to the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from invfast.locks import once
from invfast.ops import extension
from invfast.ops.anderson_mix import anderson_mix
from invfast.ops.contract import SCHEMAS, Index, check_history, check_target, check_update
from invfast.ops.lincomb import lincomb, lincomb_residual

NAMES = ("reference", "cpp", "triton")


@dataclass(frozen=True)
class Kernels:
    """The three ops of one implementation; signatures, results and errors are those of `invfast.ops`.

    Args:
        name: of the implementation.
        reason: why it was chosen.
    """

    name: str
    lincomb: Callable[[Sequence[torch.Tensor], torch.Tensor, Index], list[torch.Tensor]]
    lincomb_residual: Callable[[Sequence[torch.Tensor], torch.Tensor, Index, torch.Tensor], list[torch.Tensor]]
    anderson_mix: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]
    reason: str = ""


REFERENCE = Kernels("reference", lincomb, lincomb_residual, anderson_mix, "asked for")


def resolve(device: torch.device | str = "cpu", kernels: str | None = None) -> Kernels:
    """The implementation of a name, or the best there is for a device.

    By default CUDA takes triton, then cpp, then the reference; a CPU takes cpp, then the reference; other devices take
    the reference.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the named implementation cannot run on this device; says why and what to install.
    """
    device = torch.device(device)
    if kernels is None:
        missing: list[str] = []
        for name in _preferred(device.type):
            why = unavailable(name, device)
            if why is None:
                return _load(name, device, "; ".join([f"first choice on {device.type} that runs", *missing]))
            missing.append(f"{name}: {why}")
    if kernels not in NAMES:
        raise ValueError(f"unknown kernels {kernels!r}; expected one of {', '.join(map(repr, NAMES))}, or None")
    why = unavailable(kernels, device)
    if why is not None:
        raise RuntimeError(f"kernels {kernels!r} are unavailable on {device.type}: {why}")
    return _load(kernels, device, "asked for")


def unavailable(name: str, device: torch.device | str = "cpu") -> str | None:
    """Why an implementation cannot run on a device, with the remedy; None where it can."""
    kind = torch.device(device).type
    if name == "reference":
        return None
    if name == "cpp":
        return extension.unavailable(kind)
    if kind != "cuda":
        return "triton's kernels run on CUDA devices"
    try:
        _triton()
    except (ImportError, RuntimeError) as error:
        return str(error)
    return None


def _preferred(kind: str) -> tuple[str, ...]:
    return {"cuda": ("triton", "cpp", "reference"), "cpu": ("cpp", "reference")}.get(kind, ("reference",))


def _load(name: str, device: torch.device, reason: str) -> Kernels:
    if name == "reference":
        return Kernels(name, lincomb, lincomb_residual, anderson_mix, reason)
    return checked(name, extension.load() if name == "cpp" else _triton(), device, reason)


@once
def _triton() -> Any:
    from invfast import kernels

    return kernels.load()


def checked(name: str, found: Any, device: torch.device | str = "cpu", reason: str = "asked for") -> Kernels:
    """Kernels of a namespace of the three raw ops, behind the checks that the definitions make, for one device."""
    first = torch.zeros((), dtype=torch.int64, device=device)

    def place(table: torch.Tensor, index: Index) -> tuple[torch.Tensor, torch.Tensor]:
        # A raw op takes the step as a tensor; for an int the table is cut to its one row, a view.
        if not isinstance(index, int):
            return table, index
        return table.narrow(0, index, 1), first

    def update(inputs: Sequence[torch.Tensor], table: torch.Tensor, index: Index) -> list[torch.Tensor]:
        check_update(inputs, table, index)
        return found.lincomb(list(inputs), *place(table, index))

    def residual(
        inputs: Sequence[torch.Tensor], table: torch.Tensor, index: Index, y: torch.Tensor
    ) -> list[torch.Tensor]:
        check_target(inputs, y)
        check_update(inputs, table, index)
        return found.lincomb_residual(list(inputs), *place(table, index), y)

    def mix(values: Sequence[torch.Tensor], residuals: Sequence[torch.Tensor]) -> torch.Tensor:
        check_history(values, residuals)
        return found.anderson_mix(list(values), list(residuals))

    return Kernels(name, update, residual, mix, reason)


@once
def register(namespace: str) -> None:
    """Schemas and shapes of the three ops in a namespace, for an implementation to fill."""
    for name, schema in SCHEMAS.items():
        torch.library.define(f"{namespace}::{name}", schema)
        torch.library.register_fake(f"{namespace}::{name}", FAKES[name])


def _fake_lincomb(inputs: list[torch.Tensor], table: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
    return [inputs[0].new_empty(inputs[0].shape, dtype=table.dtype) for _ in range(table.shape[1])]


def _fake_residual(
    inputs: list[torch.Tensor], table: torch.Tensor, index: torch.Tensor, y: torch.Tensor
) -> list[torch.Tensor]:
    sums = table.new_empty((inputs[0].shape[0], 3))
    return [*_fake_lincomb(inputs, table, index), sums]


def _fake_mix(values: list[torch.Tensor], residuals: list[torch.Tensor]) -> torch.Tensor:
    return values[0].new_empty(values[0].shape)


FAKES = {"lincomb": _fake_lincomb, "lincomb_residual": _fake_residual, "anderson_mix": _fake_mix}


def _define() -> None:
    """`torch.ops.invfast.*`: the definitions as torch operators, for graphs that are compiled or exported."""
    register("invfast")
    definitions = {
        "lincomb": lambda *given: [out.contiguous() for out in lincomb(*given)],
        "lincomb_residual": lambda *given: [out.contiguous() for out in lincomb_residual(*given)],
        "anderson_mix": lambda *given: anderson_mix(*given).contiguous(),
    }
    for name, definition in definitions.items():
        torch.library.impl(f"invfast::{name}", "CompositeExplicitAutograd", definition)


_define()
