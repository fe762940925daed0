"""invfast: invert images through diffusion models, fast and exactly."""

import os

# diffusers imports onnxruntime, where it is installed, when a pipeline is loaded; from then on it reports to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from invfast.api import DecoderInversion, Reconstruction, invert, reconstruct
from invfast.editing import edit
from invfast.interpolation import interpolate
from invfast.inversion import Inversion
from invfast.preparation import prepare
from invfast.schedule import Schedule
from invfast.store import release

__all__ = [
    "DecoderInversion",
    "Inversion",
    "Reconstruction",
    "Schedule",
    "edit",
    "interpolate",
    "invert",
    "prepare",
    "reconstruct",
    "release",
]
