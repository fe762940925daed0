"""What is measured: one case a row, in the order in which it is run.

An evaluation of the bundled UNet takes about 8 ms an image on two quiet cores in float32, and eight times as long in
float16 and bfloat16 where a CPU emulates them. `Case.price` counts evaluations there and back, in those of float32:

    every method at guidance 1    80 steps of the grids 10, 20, 50 x 66 images x (evaluations a step + 1)    61 min
    guidance 3 and 7.5            50 steps x 4 and 16 images x up to 22 + 2                                  12 min
    half precision, white         10 steps x 4 and 1 images x 8                                               5 min
    generated, interpolation      50 and 20 steps x 16 and 8 images                                           3 min
    early checkpoint              50 steps x 66 images, x 4 images x 8                                        3 min

`python -m benchmarks.accuracy --plan` does this sum for the list below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from invfast.methods import (
    BDIA,
    DDIM,
    EDICT,
    GNRI,
    METHODS,
    OBELM,
    Auto,
    Direct,
    EasyInv,
    FixedPoint,
    ForwardStart,
    Method,
    NegativePrompt,
    NoiseMaps,
    NullText,
    PromptTuning,
    ReNoise,
    to_dict,
)

FULL_GRIDS, QUICK_GRIDS = (10, 20, 50), (10,)
TARGETS = (70, 95)
BUDGETS = {10: (1.1, 1.2, 1.5, 2, 3, 5), 20: (1.05, 1.2, 1.5, 2, 3, 5), 50: (1.05, 1.2, 2, 4)}
"""Of `auto`, by N: what other methods cost, and the accuracy that was wanted of it."""
HALF = ("bfloat16", "float16")
SECONDS_AN_EVALUATION, METRICS = 0.008, 5
"""METRICS: what VAE and metrics take for an image, most of it SSIM in float64, in evaluations."""

METHODS_AT_ONE: dict[str, Method] = {
    "DDIM": DDIM(),
    "warm start": FixedPoint(1, warm_start="constant"),
    "warm start, linear": FixedPoint(1, warm_start="linear"),
    "fixed point 3": FixedPoint(3),
    "averaged 3": FixedPoint(3, "averaged"),
    "Anderson 3": FixedPoint(3, "anderson"),
    "Anderson 5": FixedPoint(5, "anderson"),
    "warm + Anderson 2": FixedPoint(2, "anderson", "linear"),
    "warm + Anderson 3": FixedPoint(3, "anderson", "linear"),
    "EasyInv": EasyInv(),
    "forward start 1": ForwardStart(1),
    "forward start 2": ForwardStart(2),
    "ReNoise": ReNoise(),
    "ReNoise, plain": ReNoise(lambda_kl=0, lambda_ac=0),
    "GNRI": GNRI(),
    "EDICT": EDICT(),
    "BDIA": BDIA(),
    "O-BELM": OBELM(),
    "noise maps": NoiseMaps(),
}
NAMED = METHODS_AT_ONE | {"auto 70": Auto(70), "auto 95": Auto(95)}
ON_ONE_GRID: dict[str, tuple[int, Method]] = {
    "ReNoise 9": (10, ReNoise(9)),
    "ReNoise 9, plain": (10, ReNoise(9, lambda_kl=0, lambda_ac=0)),
    "EasyInv SDXL": (50, EasyInv.sdxl()),
    "forward start 2, auto 70": (50, ForwardStart(2, Auto(70))),
}
"""Only on the grid nearest to the one it is published for, or where it differs most."""


LATER = {
    "asked": "target",
    "first": "target",
    "alternate": True,
    "inverse_guidance": 1.0,
    "stop": "before",
    "prior": 0.0,
    "average": True,
    "first_iterations": None,
    "shifts": "shared",
}
"""Settings that methods got after rows were measured, and what they were before: at that a row is still known."""


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        group: which table it belongs to, and how it is measured (`measure.MEASURES`).
        name: of the method, as printed.
        method: what is run.
        steps: N.
        images: a set of `pictures.load`.
        guidance: of the inversion.
        back: guidance of the way back.
        dtype: the network's.
        model: "emoji64" or "emoji64-early", a folder of the demo.
    """

    group: str
    name: str
    method: Method
    steps: int
    images: str
    guidance: float = 1.0
    back: float = 1.0
    dtype: str = "float32"
    model: str = "emoji64"

    def settings(self) -> dict[str, Any]:
        """All of it as plain values: with the digests of weights and images what a row's key is made of."""
        return {**vars(self), "method": _as_known(to_dict(self.method))}

    def price(self, count: int) -> float:
        """Expected evaluations in float32 for `count` images, there and back, metrics included."""
        up = _evaluations(self.method, self.steps) * (2 if self.guidance > 1 else 1)
        down = 2 if isinstance(self.method, EDICT) else 1
        down *= 7 if self.group == "interpolation" else 2 if self.back > 1 else 1
        return count * (self.steps * (up + down) * (1 if self.dtype == "float32" else 8) + METRICS)


def _as_known(method: dict[str, Any]) -> dict[str, Any]:
    """A method without the settings of `LATER` that are at their defaults."""
    known = {name: value for name, value in method.items() if name not in LATER or value != LATER[name]}
    return {name: _as_known(value) if isinstance(value, dict) else value for name, value in known.items()}


def _evaluations(method: Method, n: int) -> float:
    """Evaluations a step; a differentiated one costs three."""
    if isinstance(method, NullText):
        return _evaluations(method.method, n) + 2 + 2 * method.iterations  # a third of them is not needed
    if isinstance(method, ReNoise):
        return method.iterations + 1 + (1.5 if method.regularised else 0)
    if isinstance(method, Auto):
        if method.budget:
            return min(method.budget, 1 + 30 / n)
        return 1 + max(0.0, method.target - 42) / 10 * (10 / n) ** 1.7  # as seen on 10 and 50 steps
    if isinstance(method, (NegativePrompt, Direct, ForwardStart)):
        return _evaluations(method.method, n)
    return 2.0 if isinstance(method, EDICT) else float(getattr(method, "iterations", 1))


def cases(quick: bool = False) -> list[Case]:
    """Every case of the full or the quick run, without repetition."""
    groups = (at_one, guided, generated, half, white, early)
    return list(dict.fromkeys(case for group in groups for case in group(quick)))


def at_one(quick: bool) -> list[Case]:
    """Every method at guidance 1 on every grid: the tables by N and the Pareto picture."""
    images, grids = ("quick", QUICK_GRIDS) if quick else ("full", FULL_GRIDS)
    found = []
    for n in grids:
        dial = {f"auto {target}": Auto(target) for target in TARGETS}
        dial |= {f"auto, budget {budget:g}": Auto(budget=budget) for budget in BUDGETS[n]}
        found += [Case("guidance 1", name, m, n, images) for name, m in (dial | METHODS_AT_ONE).items()]
    return found + [
        Case("guidance 1", name, method, 10 if quick else n, images) for name, (n, method) in ON_ONE_GRID.items()
    ]


def guided(quick: bool) -> list[Case]:
    """Inverted at guidance 1 and brought back at g, by every way there is."""
    found, n = [], 10 if quick else 50
    for g in (7.5,) if quick else (3.0, 7.5):
        images = "bundled 2" if quick else "bundled 4" if g == 3 else "bundled 16"
        plain = {"DDIM": DDIM(), "auto 70": Auto(70), "EDICT": EDICT(), "noise maps": NoiseMaps()}
        corrected = {
            "direct": Direct(g),
            "negative prompt": NegativePrompt(g),
            "negative prompt, auto 70": NegativePrompt(g, Auto(70)),
            "null-text": NullText(g),
            "prompt tuning": PromptTuning(g),
        }
        found += [Case("guided", name, m, n, images, back=g) for name, m in (plain | corrected).items()]
        same = {"EDICT, inverted at g": EDICT(), "noise maps, inverted at g": NoiseMaps()}
        found += [Case("guided", name, m, n, images, guidance=g, back=g) for name, m in same.items()]
    return found


def generated(quick: bool) -> list[Case]:
    """Images the model drew from known noise: is that noise found again, and does the way to it lead over images?"""
    count, n = ("drawn 2", 10) if quick else ("drawn 16", 50)
    names = ("DDIM", "EasyInv", "forward start 2", "warm start", "auto 70", "auto 95", "Anderson 5", "O-BELM")
    methods = {name: NAMED[name] for name in names}
    found = [Case("generated", name, m, n, count) for name, m in methods.items()]
    few, n = ("drawn 2", 10) if quick else ("drawn 8", 20)
    path = {name: methods[name] for name in ("DDIM", "EasyInv", "forward start 2", "auto 70")}
    return found + [Case("interpolation", name, m, n, few) for name, m in path.items()]


def half(quick: bool) -> list[Case]:
    """The network in half precision, latents in float32."""
    images, n = ("bundled 1", 5) if quick else ("bundled 4", 10)
    names = ("DDIM", "warm start", "auto 70") if quick else ("DDIM", "EasyInv", "warm start", "auto 70", "Anderson 3")
    if not quick:
        names += ("EDICT", "BDIA", "O-BELM", "noise maps")
    return [
        Case("half precision", name, NAMED[name], n, images, dtype=dtype)
        for dtype in ("float32", *HALF)
        for name in names
    ]


def white(quick: bool) -> list[Case]:
    """Every named method on a plain white image in every dtype: finite, and exact where that is claimed."""
    n = 5 if quick else 10
    dtypes = ("float32",) if quick else ("float32", *HALF)
    found = []
    for name, method in METHODS.items():
        back = method.guidance_scale or 1.0
        found += [Case("white", name, method, n, "white", back=back, dtype=dtype) for dtype in dtypes]
    return found


def early(quick: bool) -> list[Case]:
    """EasyInv's claim is about imprecise models and half precision: against DDIM on the early checkpoint."""
    images, few, n = ("bundled 2", "bundled 1", 5) if quick else ("full", "bundled 4", 50)
    found = [Case("early", name, NAMED[name], n, images, model="emoji64-early") for name in ("DDIM", "EasyInv")]
    pairs = [
        Case("early", name, NAMED[name], n, few, dtype=dtype)
        for dtype in ("float32", "float16")
        for name in ("DDIM", "EasyInv")
    ]
    if quick:
        return found
    return found + pairs + [replace(case, model="emoji64-early") for case in pairs]
