"""Pictures out: grids, strips, maps of errors; as PNG, PDF, SVG or GIF."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from invfast.files import write_atomically

SUFFIXES = (".png", ".pdf", ".svg")
"""Of files of one picture."""
MOVING = ".gif"
"""Of one of several, a frame each."""
MOST = 4096
"""Pixels of a cell at most."""
PIXELATED = 3
"""From this enlargement on pixels stay sharp squares: they are what is looked at. Below it they would be uneven."""
GAP = 4


def check_cell(cell: int) -> None:
    """Raises ValueError where `cell` is no integer from 1 to MOST."""
    if not isinstance(cell, Integral) or isinstance(cell, bool) or not 1 <= cell <= MOST:
        raise ValueError(f"cell must be an integer from 1 to {MOST}, pixels of a picture's longer side, got {cell!r}")


def fitted(picture: Image.Image, cell: int) -> Image.Image:
    """A picture as RGB, its longer side `cell` pixels, its aspect kept.

    Smaller by Lanczos; larger by bicubic interpolation, or as sharp squares where it is PIXELATED times as large.

    Raises:
        ValueError: `cell` is no integer from 1 to MOST.
    """
    check_cell(cell)
    scale = cell / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= PIXELATED else way)


def grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str], cell: int = 128
) -> Image.Image:
    """Rows of pictures under column titles, a name before each row.

    Args:
        rows: as many pictures each as there are columns, of any sizes.
        columns: their titles, of a line or several.
        names: of the rows.
        cell: pixels of the longer side of every picture.

    Raises:
        ValueError: no pictures, or rows of other lengths than columns or names; or as `fitted`.
    """
    if not rows or not columns or len(rows) != len(names) or any(len(row) != len(columns) for row in rows):
        raise ValueError(
            f"a grid needs rows of as many pictures as columns, and a name a row, got rows of "
            f"{[len(row) for row in rows]} for {len(columns)} columns and {len(names)} names"
        )
    font = ImageFont.load_default(max(13, cell // 10))
    cells = [[fitted(picture, cell) for picture in row] for row in rows]
    titles = [_size(title, font) for title in columns]
    widths = [max(each.width for each in column) for column in zip(*cells, strict=True)]
    widths = [max(width, title[0] + GAP) for width, title in zip(widths, titles, strict=True)]
    heights = [max(each.height for each in row) for row in cells]
    left, head = 12 + max(_size(name, font)[0] for name in names), 10 + max(title[1] for title in titles)
    lefts, tops = _places(left, widths), _places(head, heights)
    canvas = Image.new("RGB", (lefts.pop(), tops.pop()), "white")
    draw = ImageDraw.Draw(canvas)
    for title, x, width in zip(columns, lefts, widths, strict=True):
        draw.multiline_text((x + width / 2, head - 4), title, "black", font, anchor="md", align="center")
    for row, name, y, height in zip(cells, names, tops, heights, strict=True):
        draw.text((left - 8, y + height / 2), name, "black", font, anchor="rm")
        for picture, x, width in zip(row, lefts, widths, strict=True):
            canvas.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
    return canvas


def _size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Width and height of a text of a line or several, in pixels."""
    right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)[2:]
    return math.ceil(right), math.ceil(bottom)


def _places(start: int, sizes: Sequence[int]) -> list[int]:
    """Where each begins, and after the last one's gap the end."""
    return [start + sum(sizes[:j]) + GAP * j for j in range(len(sizes) + 1)]


def strip(pictures: Sequence[Image.Image], cell: int | None = None, gap: int = GAP) -> Image.Image:
    """Pictures side by side on white, as large as they are or with `cell` pixels on their longer side.

    Raises:
        ValueError: no pictures, or as `fitted`.
    """
    each = [picture.convert("RGB") if cell is None else fitted(picture, cell) for picture in pictures]
    if not each:
        raise ValueError("no pictures for a strip: the list is empty")
    width, height = sum(one.width for one in each) + gap * (len(each) - 1), max(one.height for one in each)
    canvas, x = Image.new("RGB", (width, height), "white"), 0
    for one in each:
        canvas.paste(one, (x, (height - one.height) // 2))
        x += one.width + gap
    return canvas


def heat(values: torch.Tensor, peak: float) -> list[Image.Image]:
    """Values (B, H, W) from 0, black, over red and yellow to `peak`, white."""
    share = (values.detach().float().cpu() / (peak or 1)).nan_to_num(1).clamp(0, 1)
    colours = torch.stack([3 * share, 3 * share - 1, 3 * share - 2], -1).clamp(0, 1)
    return [Image.fromarray(each) for each in (colours * 255).round().numpy().astype(np.uint8)]


def encode(pictures: Image.Image | Sequence[Image.Image], suffix: str, milliseconds: int = 150) -> bytes:
    """The content of a file of one picture, or of several: frames of a GIF, a strip in the other kinds.

    Args:
        pictures: one or several; of a GIF all of one size.
        suffix: ".png" and ".svg" keep every pixel, ".pdf" holds a JPEG of high quality; ".gif" has 256 colours a frame.
        milliseconds: a frame of a GIF is shown.

    Raises:
        ValueError: another suffix, no pictures, or frames of different sizes.
    """
    suffix, several = suffix.lower(), not isinstance(pictures, Image.Image)
    if suffix not in (*SUFFIXES, MOVING):
        raise ValueError(f"pictures are written as {', '.join((*SUFFIXES, MOVING))}, got {suffix!r}")
    each, content = list(pictures) if several else [pictures], BytesIO()
    if suffix != MOVING:
        picture = strip(each) if several else pictures.convert("RGB")
        if suffix == ".svg":
            return _svg(picture)
        given = {} if suffix == ".png" else {"quality": 95, "subsampling": 0}
        picture.save(content, suffix[1:].upper(), **given)
        return content.getvalue()
    sizes = sorted({one.size for one in each})
    if len(sizes) != 1:
        raise ValueError(f"the frames of a GIF have one size, got {sizes or 'none at all'}")
    first, *rest = (one.convert("RGB") for one in each)
    first.save(content, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return content.getvalue()


def save(pictures: Image.Image | Sequence[Image.Image], path: str | Path, milliseconds: int = 150) -> None:
    """Writes one picture or several as the path's suffix says, whole or not at all; raises what `encode` does."""
    write_atomically(Path(path), encode(pictures, Path(path).suffix, milliseconds))


def _svg(picture: Image.Image) -> bytes:
    """A picture within an SVG, pixel by pixel."""
    data = base64.b64encode(encode(picture, ".png")).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {picture.width} {picture.height}">'
        f'<image {size} href="data:image/png;base64,{data}"/></svg>\n'
    ).encode()
