"""The network of a pipeline, whatever its family: cloned, precomputed, prepared on a runtime, bound to a condition."""

from __future__ import annotations

from invfast.denoiser.conditioned import Conditioned, alike
from invfast.denoiser.denoiser import Condition, Denoiser
from invfast.denoiser.form import Form, axes
from invfast.denoiser.precompute import EMBEDS, GUIDANCE, MASK, SCALE, SCALES
from invfast.denoiser.predictor import Predictor
from invfast.denoiser.reading import Reading

__all__ = [
    "EMBEDS",
    "GUIDANCE",
    "MASK",
    "SCALE",
    "SCALES",
    "Condition",
    "Conditioned",
    "Denoiser",
    "Form",
    "Predictor",
    "Reading",
    "alike",
    "axes",
]
