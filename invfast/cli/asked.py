"""What was asked for that no model could do, refused before one is loaded: options by their names, of any command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check(given: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError, OSError: an option's value; says what was expected.
    """
    elsewhere = given.get("engine") == "ray"  # devices are those of its actors
    for name, refuse in CHECKS.items():
        if given.get(name) is not None and not (elsewhere and name == "device"):
            refuse(given[name])


def _device(name: str) -> None:
    from invfast.arguments import device_of

    device_of(name)


def _dtype(name: str) -> None:
    from invfast.denoiser.denoiser import dtype_of

    dtype_of(name)


def _runtime(name: str) -> None:
    from invfast import runtimes

    if name != "auto":
        runtimes.named(name)


def _guidance(scale: float) -> None:
    from invfast.arguments import check_guidance

    check_guidance(scale)


def _strength(share: float) -> None:
    from invfast.schedule import check_strength

    check_strength(share)


def _encode(name: str) -> None:
    from invfast.adapters.decoder_inversion import chosen

    chosen(name)


def _seed(seed: int) -> None:
    import torch

    try:
        torch.Generator().manual_seed(seed)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"a seed must be an integer of 64 bits, got {seed}") from error


def _cell(cell: int) -> None:
    from invfast.figures import check_cell

    check_cell(cell)


def _output(path: Path) -> None:
    above = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    if above != path and not above.is_dir():
        raise NotADirectoryError(f"{str(path)!r} cannot be written: {str(above)!r} is a file; name another place")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{str(path)!r} cannot be written: {str(above)!r} is read-only; name another place")


CHECKS = {
    "device": _device,
    "dtype": _dtype,
    "runtime": _runtime,
    "guidance": _guidance,
    "strength": _strength,
    "encode": _encode,
    "seed": _seed,
    "cell": _cell,
    "output": _output,
    "table": _output,
}
