"""An inversion as a prompt or a notebook shows it: one line, and a small picture of its latents."""

from __future__ import annotations

import base64
import html as markup
from typing import TYPE_CHECKING

from invfast import figures, images

if TYPE_CHECKING:
    from invfast.inversion import Inversion

LONGEST = 60
"""Characters of a method or prompt; what is longer is cut."""
SHOWN, SIDE, WIDTH = 4, 64, 128
"""Images at most, pixels of the longer side of one, fewer of several, and how wide one is shown."""


def line(inversion: Inversion) -> str:
    """What it is of, how it was found and how far it went, in one line."""
    x, count, steps = inversion.latents, len(inversion), inversion.schedule.num_steps
    shape = " x ".join(map(str, x.shape[1:]))
    taken = f"{steps} steps" if inversion.node == steps else f"{inversion.node} of {steps} steps"
    if inversion.prompt is None:
        said = "prompt given as embeddings"
    else:
        said = f"prompt {_cut(repr(inversion.prompt[0]))}" if inversion.prompt else "no prompt"
        said += f" and {count - 1} more" if count > 1 else ""
    return (
        f"Inversion({count} image{'s' * (count != 1)}, latents {shape} {str(x.dtype).removeprefix('torch.')} on "
        f"{x.device}, {_cut(repr(inversion.method))}, {taken}, {said})"
    )


def html(inversion: Inversion) -> str:
    """The first latents of the noise end as a picture of at most some 17 kB, and the line."""
    said = f"<code>{markup.escape(line(inversion))}</code>"
    if not len(inversion):
        return said
    some = inversion.latents[:SHOWN].detach().cpu().float().nan_to_num()
    if some.shape[1] == 2:
        some = some[:, :1]
    side = SIDE if len(some) == 1 else SIDE // 2
    pictures = [figures.fitted(each, min(side, max(each.size))) for each in images.latents_to_pil(some)]
    data = base64.b64encode(figures.encode(figures.strip(pictures, gap=1), ".png")).decode()
    width = WIDTH * len(pictures)
    return (
        f'<img src="data:image/png;base64,{data}" width="{width}" style="image-rendering: pixelated" '
        f'alt="latents of the inversion"><br>{said}'
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
