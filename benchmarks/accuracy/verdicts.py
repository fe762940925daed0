"""The figures that were asked for before anything was measured, in words and one table, each from rows."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy import front
from benchmarks.accuracy.sections import grids, of, table
from benchmarks.accuracy.store import Row

EXACT = ("EDICT", "BDIA", "OBELM", "NoiseMaps")
"""Classes that claim to return exactly on their own sampler."""
NO_TRAJECTORY = ("DDIM", "Auto", "EDICT", "NegativePrompt")
"""Classes of the guided cases whose inversion is no larger for more steps."""
WHITE_FLOOR, NULL_TEXT_GAP = 30.0, 1.0


def wanted(rows: Sequence[Row]) -> str:
    """The figures that were asked for before anything was measured, and what came of them."""
    if not grids(rows):
        return ""
    head = ["N", "wanted of `auto`, dB", "evaluations a step at most", "reached, dB", "difference"]
    parts = [table(head, front.acceptance(rows)), *(front.verdict(rows, n) for n in grids(rows))]
    tuned = of(rows, "guided", name="null-text", back=7.5)
    parts += [_null_text_verdict(row) + _without_trajectory(rows) for row in tuned if "figures" in row]
    parts += [text for text in (_white_verdict(rows),) if text]
    return "\n\n".join(parts)


def _null_text_verdict(row: Row) -> str:
    found = row["figures"]["all"]
    verb = "within" if found["most_below_vae"] <= NULL_TEXT_GAP else "not within"
    return (
        f"Null-text at guidance 7.5, N = {row['case']['steps']}, {found['count']} images: the median is "
        f"{found['below_vae']:.2f} dB below its VAE round trip, the worst {found['most_below_vae']:.2f}: "
        f"{verb} the {NULL_TEXT_GAP:g} dB asked for."
    )


def _without_trajectory(rows: Sequence[Row]) -> str:
    """The best at the same guidance that keeps nothing for each step."""
    found = [row for row in of(rows, "guided", back=7.5) if row["case"]["method"]["class"] in NO_TRAJECTORY]
    found = [row for row in found if "figures" in row]
    if not found:
        return ""
    best = min(found, key=lambda row: row["figures"]["all"]["most_below_vae"])
    figures = best["figures"]["all"]
    return (
        f" The best that stores no trajectory, {best['case']['name']}: {figures['below_vae']:.2f} dB, "
        f"the worst {figures['most_below_vae']:.2f}."
    )


def _white_verdict(rows: Sequence[Row]) -> str:
    found = of(rows, "white")
    if not found:
        return ""
    failed = [f"{r['case']['name']} in {r['case']['dtype']}" for r in found if "failed" in r]
    exact = [row for row in found if row["case"]["method"]["class"] in EXACT and "figures" in row]
    low = [
        f"{row['case']['name']} in {row['case']['dtype']} ({row['figures']['white']['psnr_to_vae']:.1f})"
        for row in exact
        if row["figures"]["white"]["psnr_to_vae"] is not None and row["figures"]["white"]["psnr_to_vae"] < WHITE_FLOOR
    ]
    finite = f"not finite for {', '.join(failed)}" if failed else f"finite in all {len(found)} runs"
    held = f"below {WHITE_FLOOR:g} dB: {', '.join(low)}" if low else f"all at {WHITE_FLOOR:g} dB or more"
    return f"Plain white image: {finite}; methods that claim to return exactly, image to VAE: {held}."
