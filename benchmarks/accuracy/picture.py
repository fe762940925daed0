"""The Pareto picture: evaluations a step, on a logarithmic axis, against median latent PSNR; a panel a grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.accuracy.front import Point, front, points
from benchmarks.accuracy.store import Row

TICKS = (1, 1.5, 2, 3, 4, 5, 7, 10)
BLUE, DARK, ORANGE, GREY, FAINT = "#1f6fbf", "#404040", "#d07a1f", "#a0a0a0", "#e4e4e4"
FRONTS = ((True, BLUE, "auto"), (False, ORANGE, "front of the others that DDIM sampling undoes"))


def picture(rows: Sequence[Row], grids: Sequence[int]) -> bytes:
    """PNG: panels below each other."""
    figure = Figure(figsize=(10.8, 5.6 * len(grids)), dpi=100, layout="constrained")
    panels = [Panel(axes, n, points(rows, n)) for axes, n in zip(_axes(figure, len(grids)), grids, strict=True)]
    figure.draw_without_rendering()  # the layout is known from here on, and names can be put on pixels
    figure.set_layout_engine("none")
    for each in panels:
        each.name_all()
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _axes(figure: Figure, count: int) -> Sequence[Any]:
    return figure.subplots(count, squeeze=False)[:, 0]


class Panel:
    """One grid: axes, both fronts, all points; then their names.

    Libraries that place names push them away from each other by forces, and ended far from their points here.
    """

    def __init__(self, axes: Any, n: int, found: Sequence[Point]) -> None:
        self.axes, self.found = axes, found
        kept = [point for point in found if not point.own_sampler]
        values = [point.quality for point in kept]
        self.end = 1.9 * max(point.evaluations for point in found)
        self.top = 10 * math.ceil(max(values) / 10) + 14
        self.corners = [self._stairs(front([p for p in kept if p.auto is a]), *style) for a, *style in FRONTS]
        for point in found:
            colour = BLUE if point.auto else DARK
            inside = "white" if point.own_sampler else colour
            axes.plot(*self.at(point), "o", markersize=7, color=colour, markerfacecolor=inside)
        self._frame(n, 10 * math.floor(min(values) / 10) - 5)

    def at(self, point: Point) -> tuple[float, float]:
        """Where it stands; what is far above all others at the top."""
        return point.evaluations, min(point.quality, self.top - 4)

    def _frame(self, n: int, bottom: float) -> None:
        # Room on the left, where all that costs N evaluations stands in one column.
        self.axes.set(xscale="log", xlim=(0.55, self.end), ylim=(bottom, self.top))
        self.axes.set_xticks([tick for tick in TICKS if tick < self.end])
        self.axes.set_xticks([], minor=True)
        self.axes.xaxis.set_major_formatter("{x:g}")
        self.axes.set_title(f"N = {n}: median latent PSNR in dB against evaluations a step", loc="left", fontsize=13)
        self.axes.set_xlabel("hollow: brings its own sampler, dB at the name", loc="left")
        self.axes.grid(color=FAINT)
        self.axes.set_axisbelow(True)
        self.axes.spines[:].set_visible(False)
        self.axes.legend(loc="upper right", bbox_to_anchor=(1, -0.045), ncols=2, frameon=False)

    def _stairs(self, found: Sequence[Point], colour: str, label: str) -> list[tuple[float, float]]:
        """What can be had for at most so many evaluations; the corners of its line."""
        corners: list[tuple[float, float]] = []
        for x, y in ((point.evaluations, point.quality) for point in found):
            corners += [*([(x, corners[-1][1])] if corners else []), (x, y)]
        if corners:
            corners.append((self.end, corners[-1][1]))
            self.axes.plot(*zip(*corners, strict=True), color=colour, linewidth=1.6, label=label)
        return corners

    def name_all(self) -> None:
        """Writes all names, from the top down, each at the nearest free place."""
        pixels = self.axes.transData.transform
        taken = [_around(*pixels(self.at(point)), 6) for point in self.found]
        for corners in self.corners:
            taken += [Bbox([pixels(a), pixels(b)]).padded(1) for a, b in pairwise(corners)]
        for point in sorted(self.found, key=lambda p: -p.quality):
            text = f"{point.name} ({point.quality:.0f})" if point.own_sampler else point.name
            taken.append(self._name(pixels(self.at(point)), text, BLUE if point.auto else "black", taken))

    def _name(self, at: tuple[float, float], text: str, colour: str, taken: Sequence[Bbox]) -> Bbox:
        """Writes a name, with a line to its point where that is not beside it; the box it takes."""
        (x, y), back = at, self.axes.transData.inverted().transform
        said = self.axes.text(*back(at), text, color=colour, fontsize=10.5, va="center_baseline")
        size = said.get_window_extent()
        for box in _places(x, y, size.width, size.height):
            inside = Bbox.intersection(box, self.axes.bbox)
            if inside is not None and inside.width == box.width and not any(box.overlaps(other) for other in taken):
                break
        middle = (box.y0 + box.y1) / 2
        if abs(middle - y) > size.height / 2 or min(abs(box.x0 - x), abs(box.x1 - x)) > 16:
            edge = box.x0 - 2 if box.x0 > x else box.x1 + 2
            self.axes.plot(*zip(back((x, y)), back((edge, middle)), strict=True), color=GREY, linewidth=0.8, zorder=1)
        said.set_position(back((box.x0, middle)))
        return box


def _around(x: float, y: float, away: float) -> Bbox:
    return Bbox.from_extents(x - away, y - away, x + away, y + away)


def _places(x: float, y: float, width: float, tall: float) -> Iterable[Bbox]:
    """Boxes around a point, the nearest first."""
    for away in (9, 30, 60, 100, 150):
        for shift in (0, -11, 11, -18, 18, -26, 26, -36, 36, -48, 48, -60, 60):
            for left in (x + away, x - away - width):
                yield Bbox.from_bounds(left, y + shift - tall / 2, width, tall)
