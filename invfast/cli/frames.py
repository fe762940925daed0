"""--size and --fit: what size images are taken at."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invfast.cli import terminal

if TYPE_CHECKING:
    from invfast.images import Frame


class Fit(StrEnum):
    """As images.FITS, which takes torch along."""

    crop = "crop"
    pad = "pad"
    squash = "squash"


OWN = "own"


def _size(text: str) -> Any:
    """(width, height) of "512" or "640x512", or OWN."""
    if text == OWN:
        return OWN
    return _side(text)


def _side(text: str) -> Any:
    sides = str(text).lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() and int(side) for side in sides):
        raise typer.BadParameter(f"expected a side in pixels, as 512, or width and height, as 640x512, got {text!r}")
    return int(sides[0]), int(sides[-1])


Size = Annotated[
    Any,
    typer.Option(
        parser=_size,
        metavar="N|WxH|own",
        help="Resize to this, in pixels. (default: the images' own; 64 for the bundled model)",
    ),
]
Side = Annotated[Any, typer.Option(parser=_side, metavar="N|WxH", help="Size of the images, in pixels.")]
FitTo = Annotated[
    Fit | None,
    typer.Option("--fit", help="How images come to that size: cut, with white beside them, distorted. (default: crop)"),
]


def frame_of(
    model: str, size: tuple[int, int] | str | None, fit: Fit | None, own: Iterable[tuple[int, int]] | None = None
) -> Frame | None:
    """What was asked for, the bundled model's own size where nothing was, or None: the images' own.

    Args:
        model: as `loading.load` takes it.
        size: (width, height), or OWN.
        fit: of the command line.
        own: sizes of the images, where they are known: where all are the model's nothing is said.
    """
    from invfast import demo
    from invfast.images import Frame
    from invfast.provenance import BUNDLED

    side = demo.SIZES.get(model.removeprefix(BUNDLED)) if model.startswith(BUNDLED) else None
    side = side if model else demo.SIZES["emoji64"]
    if size == OWN or (size is None and side is None):
        if fit is not None:
            raise typer.BadParameter("--fit says how images come to a --size; give one")
        return None
    if size is None:
        size = (side, side)
        if own is None or any(each != size for each in own):
            terminal.note(f"images are taken at {side} px, as the bundled model was trained; --size for another")
    return Frame(*size, (fit or Fit.crop).value)
