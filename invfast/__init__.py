"""invfast: invert images through diffusion models, fast and exactly."""

from invfast.api import Reconstruction, invert, reconstruct
from invfast.inversion import Inversion
from invfast.preparation import prepare
from invfast.schedule import Schedule

__all__ = ["Inversion", "Reconstruction", "Schedule", "invert", "prepare", "reconstruct"]
