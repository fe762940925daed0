"""What an evaluation buys: points, the Pareto front, and how `auto` stands against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.accuracy.store import Row
from invfast.methods import Auto, ForwardStart, Method, from_dict

ACCEPTANCE = {50: ((64, 1.05), (70, 2.0), (80, 4.0)), 20: ((54, 1.05), (62, 2.0))}
"""What `auto` was to reach by N: dB of median latent PSNR for at most so many evaluations a step."""


class Point(NamedTuple):
    """A method on one grid: evaluations a step and latent PSNR in dB, medians over images."""

    evaluations: float
    quality: float
    name: str
    auto: bool = False
    own_sampler: bool = False


def points(rows: Sequence[Row], n: int) -> list[Point]:
    """All methods at guidance 1 on N steps; those without any difference left are left out."""
    found = []
    for row in rows:
        case = row["case"]
        if case["group"] != "guidance 1" or case["steps"] != n or "figures" not in row:
            continue
        figures, method = row["figures"]["all"], from_dict(case["method"])
        if figures["latent_psnr"] is None:
            continue
        kind = isinstance(method, Auto), not keeps_ddim(method)
        found.append(Point(figures["evaluations"], figures["latent_psnr"], case["name"], *kind))
    return found


def keeps_ddim(method: Method) -> bool:
    """Whether the way back is plain DDIM sampling."""
    inner = method.method if isinstance(method, ForwardStart) else method
    return type(inner).sampler is Method.sampler


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other beats at the same cost or less, by rising cost."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.evaluations, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def best_within(found: Sequence[Point], evaluations: float) -> Point | None:
    """The best point that costs no more."""
    affordable = [point for point in found if point.evaluations <= evaluations]
    return max(affordable, key=lambda p: p.quality, default=None)


def verdict(rows: Sequence[Row], n: int) -> str:
    """In words: does `auto` lie on or above the front of all others that keep the DDIM sampler?"""
    kept = [point for point in points(rows, n) if not point.own_sampler]
    autos, others = [p for p in kept if p.auto], [p for p in kept if not p.auto]
    if not autos or not others:
        return f"N = {n}: nothing to compare."
    lines, margins = [], {}
    for point in autos:
        rival = best_within(others, point.evaluations)
        if rival:
            margins[point] = point.quality - rival.quality
            if margins[point] < 0:
                lines.append(f"{point.name} is {-margins[point]:.1f} dB below {rival.name}")
    for rival in front(others):
        mine = best_within(autos, rival.evaluations)
        said = mine in margins and best_within(others, mine.evaluations) == rival
        if mine and mine.quality < rival.quality and not said:
            gap = rival.quality - mine.quality
            lines.append(f"at the price of {rival.name} ({rival.evaluations:.2f} a step) it is {gap:.1f} dB below it")
    if lines:
        return f"N = {n}: `auto` does not lie on the front everywhere: {'; '.join(lines)}."
    if not margins:
        return f"N = {n}: every `auto` point costs less than all others; nothing to compare."
    least = min(margins, key=margins.get)
    return f"N = {n}: `auto` lies on or above the front; its least margin is {margins[least]:.1f} dB ({least.name})."


def acceptance(rows: Sequence[Row]) -> list[list[str]]:
    """N, wanted, for at most, reached and by which dial, the difference; one line a figure that was wanted."""
    found = []
    for n, wanted in ACCEPTANCE.items():
        autos = [point for point in points(rows, n) if point.auto]
        for decibels, limit in wanted:
            best = best_within(autos, limit)
            if best is None:
                reached = ["not run" if not autos else "no dial costs so little", ""]
            else:
                reached = [
                    f"{best.quality:.1f} ({best.name}, {best.evaluations:.2f})",
                    f"{best.quality - decibels:+.1f}",
                ]
            found.append([str(n), f"{decibels}", f"{limit:g}", *reached])
    return found
