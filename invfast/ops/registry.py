"""Which implementation of the ops runs: chosen once, before the loop, named in the result; and how one is registered.

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


MICROSECONDS = {
    "cpp": {"called": (13, 34), "captured": (1.9, 4.3, 6.2)},
    "triton": {"called": (85, 145), "captured": (1.5, 14.3, 11.9)},
}
"""What an op took at (1, 4, 64, 64) in float32 on an H200: of the host, from and to; of the device inside a CUDA graph,
lincomb, lincomb_residual, anderson_mix. triton's last two were taken before small samples were spread over programs."""

REFERENCE = Kernels("reference", lincomb, lincomb_residual, anderson_mix, "asked for")


def resolve(device: torch.device | str = "cpu", kernels: str | None = None, captured: bool = False) -> Kernels:
    """The implementation of a name, or the best there is for a device.

    By default the fastest takes them: by MICROSECONDS on CUDA, on a CPU cpp, then the reference; other devices take the
    reference.

    Args:
        device: where the tensors are.
        kernels: one of NAMES, or None.
        captured: whether the calls are recorded in CUDA graphs, where the host's part of a call counts for nothing.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the named implementation cannot run on this device; says why and what to install.
    """
    device = torch.device(device)
    if kernels is None:
        missing: list[str] = []
        for name in preferred(device.type, captured):
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


def preferred(kind: str, captured: bool = False) -> tuple[str, ...]:
    """The implementations worth asking for on a kind of device, the fastest first."""
    if kind != "cuda":
        return ("cpp", "reference") if kind == "cpu" else ("reference",)
    measured = "captured" if captured else "called"
    return (*sorted(MICROSECONDS, key=lambda name: sum(MICROSECONDS[name][measured])), "reference")


def _load(name: str, device: torch.device, reason: str) -> Kernels:
    if name == "reference":
        return Kernels(name, lincomb, lincomb_residual, anderson_mix, reason)
    return checked(name, extension.load() if name == "cpp" else _triton(), device, reason)


def _triton() -> Overloads:
    from invfast import kernels

    return implement("invfast_triton", "CUDA", kernels.load())


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


class Overloads:
    """The one overload of each op: calling it spares the search among overloads."""

    def __init__(self, namespace: str) -> None:
        ops = getattr(torch.ops, namespace)
        self.lincomb = ops.lincomb.default
        self.lincomb_residual = ops.lincomb_residual.default
        self.anderson_mix = ops.anderson_mix.default


@once
def register(namespace: str) -> Overloads:
    """Schemas and shapes of the three ops in a namespace, for an implementation to fill: a library, or `implement`."""
    for name, schema in SCHEMAS.items():
        torch.library.define(f"{namespace}::{name}", schema)
        torch.library.register_fake(f"{namespace}::{name}", FAKES[name])
    return Overloads(namespace)


@once
def implement(namespace: str, key: str, functions: Any) -> Overloads:
    """The ops of a namespace, computed by Python functions of their names for a dispatch key."""
    ops = register(namespace)
    for name in SCHEMAS:
        torch.library.impl(f"{namespace}::{name}", key, getattr(functions, name))
    return ops


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


class Definitions:
    """`torch.ops.invfast.*`: the definitions as torch operators, for graphs that are compiled or exported."""

    @staticmethod
    def lincomb(*given: Any) -> list[torch.Tensor]:
        return [out.contiguous() for out in lincomb(*given)]

    @staticmethod
    def lincomb_residual(*given: Any) -> list[torch.Tensor]:
        return [out.contiguous() for out in lincomb_residual(*given)]

    @staticmethod
    def anderson_mix(*given: Any) -> torch.Tensor:
        return anderson_mix(*given).contiguous()


implement("invfast", "CompositeExplicitAutograd", Definitions)
