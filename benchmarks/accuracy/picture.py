"""The Pareto picture: evaluations a step, on a logarithmic axis, against median latent PSNR; a panel a grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from benchmarks.accuracy.front import Point, front, points
from benchmarks.accuracy.store import Row

WIDTH, HEIGHT, LEFT, RIGHT, HEAD, FOOT = 1080, 560, 64, 24, 40, 46
TICKS = (1, 1.5, 2, 3, 4, 5, 7, 10)
BLUE, DARK, LINE, FAINT = "#1f6fbf", "#404040", "#d07a1f", "#e4e4e4"
Box = tuple[float, float, float, float]


def picture(rows: Sequence[Row], grids: Sequence[int]) -> Image.Image:
    """Panels below each other, RGB."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT * len(grids)), "white")
    for j, n in enumerate(grids):
        panel = Panel(n, points(rows, n))
        canvas.paste(panel.image, (0, j * HEIGHT))
    return canvas


class Panel:
    """One grid: axes, both lines, all points with their names."""

    def __init__(self, n: int, found: Sequence[Point]) -> None:
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(15)
        kept = [point for point in found if not point.own_sampler]
        highest = max(point.evaluations for point in found)
        # Room on the left, where all that costs N evaluations stands in one column.
        self.low, self.high = math.log(0.55), math.log(highest * 1.9)
        values = [point.quality for point in kept]
        self.bottom, self.top = 10 * math.floor(min(values) / 10) - 5, 10 * math.ceil(max(values) / 10) + 14
        self.taken: list[Box] = []
        self._axes(n)
        self._stairs(front([p for p in kept if not p.auto]), LINE)
        self._stairs(front([p for p in kept if p.auto]), BLUE)
        self._points(found)

    def x(self, evaluations: float) -> float:
        return LEFT + (math.log(evaluations) - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def y(self, quality: float) -> float:
        share = (min(quality, self.top - 4) - self.bottom) / (self.top - self.bottom)
        return HEIGHT - FOOT - share * (HEIGHT - HEAD - FOOT)

    def _axes(self, n: int) -> None:
        title = f"N = {n}: median latent PSNR in dB against evaluations a step"
        self.draw.text((LEFT, 10), title, "black", ImageFont.load_default(18))
        for tick in TICKS:
            if math.log(tick) < self.high:
                x = self.x(tick)
                self.draw.line((x, HEAD, x, HEIGHT - FOOT), FAINT)
                self.draw.text((x, HEIGHT - FOOT + 6), f"{tick:g}", "black", self.font, anchor="mt")
        for tick in range(10 * math.ceil(self.bottom / 10), int(self.top), 10):
            y = self.y(tick)
            self.draw.line((LEFT, y, WIDTH - RIGHT, y), FAINT)
            self.draw.text((LEFT - 8, y), str(tick), "black", self.font, anchor="rm")
        legend = (("auto", BLUE), ("front of the others that DDIM sampling undoes", LINE))
        right = WIDTH - RIGHT
        for text, colour in reversed(legend):
            self.draw.text((right, HEIGHT - 20), text, "black", self.font, anchor="rt")
            right -= self.font.getlength(text) + 34
            self.draw.line((right, HEIGHT - 12, right + 26, HEIGHT - 12), colour, 3)
            right -= 24
        self.draw.text((LEFT, HEIGHT - 20), "hollow: brings its own sampler, dB at the name", "black", self.font)

    def _stairs(self, found: Sequence[Point], colour: str) -> None:
        """What can be had for at most so many evaluations."""
        corners = []
        for point in found:
            x, y = self.x(point.evaluations), self.y(point.quality)
            corners += [(x, corners[-1][1])] if corners else []
            corners.append((x, y))
        if corners:
            corners.append((WIDTH - RIGHT, corners[-1][1]))
            self.draw.line(corners, colour, 2)
            for (x0, y0), (x1, y1) in pairwise(corners):
                self.taken.append((x0 - 1, min(y0, y1) - 1, x1 + 1, max(y0, y1) + 1))

    def _points(self, found: Sequence[Point]) -> None:
        at = {point: (self.x(point.evaluations), self.y(point.quality)) for point in found}
        for point, (x, y) in at.items():
            box = (x - 5, y - 5, x + 5, y + 5)
            self.taken.append(box)
            if point.own_sampler:
                self.draw.ellipse(box, "white", DARK, 2)
            else:
                self.draw.ellipse(box, BLUE if point.auto else DARK)
        for point in sorted(found, key=lambda p: -p.quality):
            name = f"{point.name} ({point.quality:.0f})" if point.own_sampler else point.name
            self._label(at[point], name, BLUE if point.auto else "black")

    def _label(self, at: tuple[float, float], text: str, colour: str) -> None:
        """Writes a name at the nearest free place, with a line to its point where that is not beside it."""
        x, y = at
        width, tall = self.font.getlength(text), 16
        for box in _places(x, y, width, tall):
            inside = box[0] > LEFT + 2 and box[2] < WIDTH - 4 and box[1] > HEAD and box[3] < HEIGHT - FOOT
            if inside and not any(_overlap(box, other) for other in self.taken):
                break
        middle = (box[1] + box[3]) / 2
        if abs(middle - y) > tall / 2 or min(abs(box[0] - x), abs(box[2] - x)) > 16:
            edge = box[0] - 2 if box[0] > x else box[2] + 2
            self.draw.line((x, y, edge, middle), "#a0a0a0")
        self.draw.text((box[0], middle), text, colour, self.font, anchor="lm")
        self.taken.append(box)


def _places(x: float, y: float, width: float, tall: float) -> Iterable[Box]:
    """Boxes around a point, the nearest first."""
    for away in (9, 30, 60, 100, 150):
        for shift in (0, -11, 11, -18, 18, -26, 26, -36, 36, -48, 48, -60, 60):
            for left in (x + away, x - away - width):
                yield left, y + shift - tall / 2, left + width, y + shift + tall / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
