"""Pictures of the rows, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.claims.subjects import AUTO
from invfast.analysis.figures import STYLES
from invfast.files import write_atomically

Rows = Sequence[Mapping[str, Any]]
SAVED = {
    "Correlation by share of steps replaced": "claims_correlation.png",
    "Error of the predicted noise": "claims_steps.png",
    "MasaCtrl, one column an inversion": "claims_masactrl.png",
}
"""Those that docs/claims.md shows."""


def drawn(rows: Rows) -> dict[str, bytes | Image.Image]:
    """PNG files by title, of what there are rows for."""
    made = {"Correlation by share of steps replaced": correlation, "Error of the predicted noise": steps}
    return {title: make(rows) for title, make in made.items()}


def correlation(rows: Rows) -> bytes:
    """Top 20 |r| against K, a panel a model."""
    models = dict.fromkeys(row["model"] for row in rows if row["study"] == "latents")
    figure = Figure(figsize=(4 * max(1, len(models)), 3.5), layout="constrained")
    for axes, model in zip(figure.subplots(1, max(1, len(models)), squeeze=False)[0], models, strict=False):
        own = {row["method"]: row for row in rows if row["study"] == "latents" and row["model"] == model}
        starts = {0: own["ddim"]["top"]}
        starts |= {int(name.split("= ")[1]): row["top"] for name, row in own.items() if "K = " in name}
        axes.plot(list(starts), list(starts.values()), label="K steps by a jump, the rest DDIM", **STYLES["latents"])
        axes.axhline(own["fresh noise"]["top"], label="fresh noise", color=STYLES["noise"]["color"], linestyle="--")
        axes.axhline(own[AUTO]["top"], label=AUTO, color=STYLES["permuted"]["color"], linestyle=":")
        axes.set(title=f"{model}, n = {own['ddim']['n']:,}", xlabel="K of 20", ylabel="mean of the 20 largest |r|")
        axes.set_ylim(0, None)
        axes.legend(fontsize=7)
    return _png(figure)


def steps(rows: Rows) -> bytes:
    """Error of what is predicted at each step, inside and outside plain areas."""
    models = dict.fromkeys(row["model"] for row in rows if row["study"] == "steps")
    figure = Figure(figsize=(4 * max(1, len(models)), 3.5), layout="constrained")
    for axes, model in zip(figure.subplots(1, max(1, len(models)), squeeze=False)[0], models, strict=False):
        own = [row for row in rows if row["study"] == "steps" and row["model"] == model and row["what"] == "step"]
        at = [row["step"] + 1 for row in own]
        axes.plot(at, [row["error_inside"] for row in own], label="plain areas", **STYLES["latents"])
        axes.plot(at, [row["error_outside"] for row in own], label="elsewhere", **STYLES["noise"])
        axes.set(title=model, xlabel="inversion step", ylabel="mean error of the network's output")
        axes.legend(fontsize=7)
    return _png(figure)


def save(pictures: Mapping[str, bytes | Image.Image], folder: Path) -> None:
    """The pictures of the documentation."""
    for title, name in SAVED.items():
        picture = pictures[title]
        if isinstance(picture, Image.Image):
            picture.save(folder / name, optimize=True)
        else:
            write_atomically(folder / name, picture)


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
