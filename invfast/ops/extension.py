"""The compiled extension invfast/_C.abi3.so: found, loaded once, or the reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from invfast.locks import once

LIBRARY = Path(__file__).parents[1] / "_C.abi3.so"
REASON = Path(__file__).parents[1] / "_C.reason"
"""What the build wrote where it made no extension, or one without CUDA kernels."""

BUILD = "install torch, a C++ compiler and cmake first, then invfast again: pip install --force-reinstall --no-deps ."


def unavailable(kind: str = "cpu") -> str | None:
    """Why the extension cannot run on a kind of device, with the remedy; None where it can."""
    written = REASON.read_text().strip() if REASON.exists() else ""
    if not LIBRARY.exists():
        return f"{written or 'this installation has no compiled extension'} ({BUILD})"
    try:
        load()
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error} (build it again for torch {torch.__version__}: {BUILD})"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(kind)
    if key is None or not torch._C._dispatch_has_kernel_for_dispatch_key("invfast_cpp::lincomb", key):
        why = f": {written} ({BUILD})" if kind == "cuda" and written else ""
        return f"{LIBRARY.name} was built without kernels for {kind}{why}"
    return None


@once
def load() -> Any:
    """The raw ops of the extension, `torch.ops.invfast_cpp`.

    Raises:
        OSError: the library is missing or does not fit this torch.
    """
    from invfast.ops.registry import register

    ops = register("invfast_cpp")
    torch.ops.load_library(LIBRARY)
    return ops
