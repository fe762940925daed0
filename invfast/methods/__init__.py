"""Inversion methods: frozen dataclasses of settings, by class or by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from invfast import plain
from invfast.methods.auto import Auto
from invfast.methods.base import Method, Problem
from invfast.methods.ddim import DDIM
from invfast.methods.direct import Direct
from invfast.methods.easyinv import EasyInv
from invfast.methods.fixed_point import FixedPoint
from invfast.methods.flow import Euler, FireFlow, RFInversion, RFSolver
from invfast.methods.forward_start import ForwardStart
from invfast.methods.gnri import GNRI
from invfast.methods.noise_maps import NoiseMaps
from invfast.methods.renoise import ReNoise
from invfast.methods.reversible import BDIA, EDICT, OBELM
from invfast.methods.solver import DPMSolver
from invfast.methods.tuned import NegativePrompt, NullText, PromptTuning

METHODS: dict[str, Method] = {
    "ddim": DDIM(),
    "auto": Auto(),
    "easyinv": EasyInv(),
    "easyinv_sdxl": EasyInv.sdxl(),
    "fixed_point": FixedPoint(3),
    "averaged": FixedPoint(3, mixing="averaged"),
    "anderson": FixedPoint(3, mixing="anderson"),
    "warm_start": FixedPoint(1, warm_start="constant"),
    "forward_start": ForwardStart(2),
    "edict": EDICT(),
    "bdia": BDIA(),
    "obelm": OBELM(),
    "dpm_solver": DPMSolver(),
    "noise_maps": NoiseMaps(),
    "renoise": ReNoise(),
    "gnri": GNRI(),
    "null_text": NullText(),
    "prompt_tuning": PromptTuning(),
    "negative_prompt": NegativePrompt(),
    "direct": Direct(),
    "euler": Euler(),
    "rf_solver": RFSolver(),
    "fireflow": FireFlow(),
    "rf_inversion": RFInversion(),
}
"""What the names mean. AIDI_E is "averaged", AIDI_A "anderson", Uni-Inv "warm_start"."""


CLASSES = {
    cls.__name__: cls
    for cls in (
        Auto,
        DDIM,
        EasyInv,
        FixedPoint,
        ForwardStart,
        EDICT,
        BDIA,
        OBELM,
        DPMSolver,
        NoiseMaps,
        ReNoise,
        GNRI,
        NullText,
        PromptTuning,
        NegativePrompt,
        Direct,
        Euler,
        RFSolver,
        FireFlow,
        RFInversion,
    )
}


def to_dict(method: Method) -> dict[str, Any]:
    """A method as plain values: its class name and its settings, methods inside them likewise."""
    settings = {f.name: getattr(method, f.name) for f in fields(method)}
    values = {name: to_dict(value) if isinstance(value, Method) else _plain(value) for name, value in settings.items()}
    return {"class": type(method).__name__, **values}


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, which JSON can hold."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def from_dict(values: Mapping[str, Any]) -> Method:
    """The method that `to_dict` described.

    Raises:
        ValueError: an unknown class, settings that are not its own or of another kind, or settings it refuses.
    """
    settings = dict(values)
    name = settings.pop("class", None)
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"unknown method class {plain.shown(name)}; expected one of {', '.join(CLASSES)}")
    settings = {key: from_dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    plain.check_fields(CLASSES[name], settings, f"settings of method {name}")
    try:
        return CLASSES[name](**settings)
    except TypeError as error:
        raise ValueError(f"settings of method {name} do not fit this version: {error}") from error


def resolve(method: str | Method) -> Method:
    """The method of a name, or the instance itself.

    Raises:
        ValueError: the name is unknown.
        TypeError: neither a name nor a Method instance.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Method instance such as FixedPoint(3), got {method!r}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(map(repr, METHODS))}")
    return METHODS[method]


__all__ = [
    "BDIA",
    "DDIM",
    "EDICT",
    "GNRI",
    "METHODS",
    "OBELM",
    "Auto",
    "DPMSolver",
    "Direct",
    "EasyInv",
    "Euler",
    "FireFlow",
    "FixedPoint",
    "ForwardStart",
    "Method",
    "NegativePrompt",
    "NoiseMaps",
    "NullText",
    "Problem",
    "PromptTuning",
    "RFInversion",
    "RFSolver",
    "ReNoise",
    "from_dict",
    "resolve",
    "to_dict",
]
