"""Figures of a report, by matplotlib, without its global state: nothing is shown and no setting is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from invfast.analysis.base import Beside
from invfast.analysis.report import Report
from invfast.files import write_atomically

LATENTS, NOISE, PERMUTED = "#0072B2", "#D55E00", "#009E73"
"""Okabe and Ito's blue, vermilion and green: told apart in every kind of colour blindness, and by their marks."""
STYLES = {
    "latents": {"color": LATENTS, "marker": "o", "linestyle": "-"},
    "noise": {"color": NOISE, "marker": "s", "linestyle": "--"},
    "permuted": {"color": PERMUTED, "marker": "^", "linestyle": ":"},
}
SUFFIXES = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""What a figure can be written as, and what of the time is left out: the same figure is the same file."""


def draw(report: Report) -> dict[str, Any]:
    """A matplotlib Figure of every subject that has a curve, by name.

    They are correlation, quantiles, spectrum and autocorrelation, as far as the report has them.

    Raises:
        ImportError: matplotlib is missing.
    """
    make, drawn = check_installed(), {}
    for name, (subject, panel) in PANELS.items():
        if subject in report.found:
            figure = make(figsize=(6, 4), layout="constrained")
            axes = figure.add_subplot()
            panel(axes, report.found[subject])
            axes.legend()
            drawn[name] = figure
    return drawn


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, PDF or SVG by the ending of its name, atomically.

    Raises:
        ValueError: another ending.
        OSError: the folder does not exist or cannot be written to.
    """
    target = Path(path)
    write_atomically(target, rendered(figure, check_name(target)))


def check_name(path: Path) -> str:
    """The ending of a figure's name; raises ValueError where it is none that can be written."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"figures are written as {', '.join(SUFFIXES)}; {str(path)!r} ends in none of them")
    return suffix


def rendered(figure: Any, suffix: str) -> bytes:
    """A figure as the content of a file."""
    content = BytesIO()
    figure.savefig(content, format=suffix[1:], dpi=150, metadata=SUFFIXES[suffix])
    return content.getvalue()


def _correlation(axes: Any, found: Beside[Any]) -> None:
    for name, result in _sets(found):
        values = sorted(result.by_patch, reverse=True)
        axes.plot(range(1, len(values) + 1), values, label=name, markersize=3, **STYLES[name])
    axes.set(xlabel="patch, the most correlated first", ylabel="mean of its 20 largest |r|", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"Correlation over {found.latents.n} latents")


def _quantiles(axes: Any, found: Beside[Any]) -> None:
    for name, result in _sets(found):
        axes.plot(result.expected, result.observed, label=name, markersize=3, **{**STYLES[name], "linestyle": ""})
    ends = found.latents.expected[0], found.latents.expected[-1]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlabel="quantile of N(0, 1)", ylabel="quantile of all values", title="Quantiles")


def _spectrum(axes: Any, found: Beside[Any]) -> None:
    for name, result in _sets(found):
        axes.plot(result.frequency, result.power, label=name, markersize=3, **STYLES[name])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="frequency, cycles a pixel", ylabel="power", ylim=(0, None), title="Spectrum")


def _autocorrelation(axes: Any, found: Beside[Any]) -> None:
    for name, result in _sets(found):
        for way, fill in (("horizontal", "full"), ("vertical", "none")):
            values = getattr(result, way)
            lags = range(1, len(values) + 1)
            axes.plot(lags, values, label=f"{name}, {way}", fillstyle=fill, markersize=5, **STYLES[name])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="pixels moved", ylabel="correlation with itself", title="Autocorrelation")


PANELS: dict[str, tuple[str, Callable[[Any, Beside[Any]], None]]] = {
    "correlation": ("correlation", _correlation),
    "quantiles": ("normality", _quantiles),
    "spectrum": ("spectrum", _spectrum),
    "autocorrelation": ("spectrum", _autocorrelation),
}


def _sets(found: Beside[Any]) -> list[tuple[str, Any]]:
    every = {"latents": found.latents, "noise": found.noise, "permuted": found.permuted}
    return [(name, result) for name, result in every.items() if result is not None]


def check_installed() -> Any:
    """matplotlib's Figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'figures need matplotlib: {error} (pip install "invfast[analysis]")') from error
    return Figure
