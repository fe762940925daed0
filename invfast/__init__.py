"""invfast: invert images through diffusion models, fast and exactly."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invfast import analysis, batch, demo, editing, watermark
    from invfast.adapters import DecoderInversion
    from invfast.api import invert
    from invfast.editing import edit
    from invfast.interpolation import interpolate
    from invfast.inversion import Inversion
    from invfast.preparation import prepare
    from invfast.reconstruction import Reconstruction
    from invfast.returning import reconstruct
    from invfast.schedule import Schedule
    from invfast.store import release

# diffusers imports onnxruntime, where it is installed, when a pipeline is loaded; from then on it reports to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PLACES = {
    "DecoderInversion": "adapters",
    "Inversion": "inversion",
    "Reconstruction": "reconstruction",
    "Schedule": "schedule",
    "edit": "editing",
    "interpolate": "interpolation",
    "invert": "api",
    "prepare": "preparation",
    "reconstruct": "returning",
    "release": "store",
}
_MODULES = ("analysis", "batch", "demo", "editing", "watermark")

__all__ = [
    "DecoderInversion",
    "Inversion",
    "Reconstruction",
    "Schedule",
    "__version__",
    "analysis",
    "batch",
    "demo",
    "edit",
    "editing",
    "interpolate",
    "invert",
    "prepare",
    "reconstruct",
    "release",
    "watermark",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for (PEP 562): torch takes seconds, a help text none."""
    if name in _PLACES:
        value = getattr(importlib.import_module(f"invfast.{_PLACES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"invfast.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("invfast")
    else:
        raise AttributeError(f"module 'invfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
