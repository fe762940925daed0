"""The coefficients of every update, pure float64: base says what a row is."""

from __future__ import annotations

from invfast.rows.base import (
    VELOCITY_BELOW,
    blend_before,
    damp,
    diffuse,
    down,
    explicit,
    forecast,
    from_mean,
    from_source,
    guided,
    jump,
    moved,
    noise,
    noise_maps,
    slope,
    transfer,
    up,
    with_residual,
)
from invfast.rows.flow import along, beyond, pulled_down, pulled_up
from invfast.rows.reversible import bdia, edict, obelm
from invfast.rows.solver import clean, multistep, multistep_up

__all__ = [
    "VELOCITY_BELOW",
    "along",
    "bdia",
    "beyond",
    "blend_before",
    "clean",
    "damp",
    "diffuse",
    "down",
    "edict",
    "explicit",
    "forecast",
    "from_mean",
    "from_source",
    "guided",
    "jump",
    "moved",
    "multistep",
    "multistep_up",
    "noise",
    "noise_maps",
    "obelm",
    "pulled_down",
    "pulled_up",
    "slope",
    "transfer",
    "up",
    "with_residual",
]
