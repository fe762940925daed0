"""The claims of both papers: what measures each, and what its figures must be to confirm it.

Verdicts are computed, a model at a time. The models are the bundled ones, whose images have 64 and 32 pixels: they show
whether an effect is there, not how large it is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.claims.subjects import started

Rows = Sequence[Mapping[str, Any]]
Values = Mapping[str, float]
NOISE, FRESH, START = "the noise", "fresh noise", started(2)
DIFFUSION, ALL = ("pixel", "latent"), ("pixel", "latent", "flow")
DIFFERENCE, ERROR = "difference", "its standard error"
EARLY = 0.1
"""The first steps of an inversion, where the paper finds the error."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        says: what it says, in our words.
        study: whose rows speak of it, `python -m benchmarks.claims STUDY`.
        figure: what its values are.
        values: of the rows of one model, by name; None where nothing here can say it.
        holds: whether values confirm it.
        models: those it is asked of.
    """

    says: str
    study: str
    figure: str = ""
    values: Callable[[Rows], Values] | None = None
    holds: Callable[[Values], bool] = lambda values: False
    models: tuple[str, ...] = ALL


def one(rows: Rows, **wanted: Any) -> Mapping[str, Any]:
    """The row with these entries.

    Raises:
        LookupError: there is none; it names what was looked for.
    """
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row
    raise LookupError(f"no row of {wanted}")


def by_method(field: str, *methods: str, **wanted: Any) -> Callable[[Rows], Values]:
    """A field of several methods' rows."""
    return lambda rows: {method: one(rows, method=method, **wanted)[field] for method in methods}


def paired(field: str, *methods: str) -> Callable[[Rows], Values]:
    """A field of two methods' rows, and by how much the first is above the second, source by source."""

    def values(rows: Rows) -> Values:
        found = {method: one(rows, method=method) for method in methods}
        pairs = zip(*(found[method]["each"][field] for method in methods), strict=True)
        off = np.array([a - b for a, b in pairs if a is not None and b is not None])
        beside = {DIFFERENCE: float(off.mean()), ERROR: float(off.std(ddof=1)) / math.sqrt(len(off))}
        return {method: row[field] for method, row in found.items()} | beside

    return values


def distances(rows: Rows, *methods: str) -> Values:
    """Frechet distances half way of two methods, and by how much the first is above the second."""
    found = [one(rows, method=method, what="between", share=1 / 2) for method in methods]
    off = found[0]["frechet"] - found[1]["frechet"]
    error = next(row["apart"][name] for row, name in zip(found, methods[::-1], strict=True) if name in row["apart"])
    values = {method: row["frechet"] for method, row in zip(methods, found, strict=True)}
    return values | {DIFFERENCE: off, ERROR: error}


def above(values: Values) -> bool:
    """The difference is above twice its standard error."""
    return values[DIFFERENCE] > 2 * values[ERROR]


def below(values: Values) -> bool:
    """It is below zero by as much."""
    return values[DIFFERENCE] < -2 * values[ERROR]


def fields(method: str, **named: str) -> Callable[[Rows], Values]:
    """Several fields of one method's row."""
    return lambda rows: {name.replace("_", " "): one(rows, method=method)[field] for name, field in named.items()}


def inside(rows: Rows) -> Values:
    """Deviation where plain over that elsewhere."""
    found = {method: one(rows, method=method) for method in ("ddim", NOISE, START)}
    return {method: row["std_inside"] / row["std_outside"] for method, row in found.items()}


def early(inner: str, outer: str) -> Callable[[Rows], Values]:
    """A quotient of two fields, in the first tenth of the steps and later."""

    def values(rows: Rows) -> Values:
        steps = [row for row in rows if row.get("what") == "step"]
        count = max(1, round(EARLY * len(steps)))
        parts = {"first tenth of steps": steps[:count], "later": steps[count:]}
        return {name: sum(s[inner] for s in part) / sum(s[outer] for s in part) for name, part in parts.items()}

    return values


def swapped(rows: Rows) -> Values:
    """Distance to the noise with the first steps replaced by what was recorded, by how many."""
    return {f"{row['k']} swapped": row["to_noise"] for row in rows if row.get("what") == "swapped"}


def at_shares(field: str) -> Callable[[Rows], Values]:
    """A field of DDIM and all forward starts, by K."""

    def values(rows: Rows) -> Values:
        found = {"K = 0": one(rows, method="ddim")[field]}
        starts = [row for row in rows if row["method"].startswith("forward start")]
        if not starts:
            raise LookupError("no row of a forward start")
        return found | {row["method"].split(", ")[1]: row[field] for row in starts}

    return values


def first(values: Values) -> float:
    """The value named first."""
    return next(iter(values.values()))


def largest(values: Values) -> bool:
    """The first is above all others."""
    return first(values) > max(list(values.values())[1:])


def smallest(values: Values) -> bool:
    """The first is below all others."""
    return first(values) < min(list(values.values())[1:])
