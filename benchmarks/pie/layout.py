"""PIE-Bench as it lies on disk: mapping_file.json, and annotation_images/ with what its entries name.

An entry is {"image_path", "original_prompt", "editing_prompt", "mask", ...}. Its mask is [start, length, start, ...]:
runs of the image's pixels, row by row, from 0, that are to be edited; the border counts as edited, as its authors have
it. Square brackets in prompts mark what differs, no part of them (cure-lab/PnPInversion, evaluation/evaluate.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from invfast import images

MAPPING, IMAGES = "mapping_file.json", "annotation_images"
TEXTS = ("image_path", "original_prompt", "editing_prompt")


@dataclass(frozen=True)
class Example:
    """One image of the benchmark.

    Args:
        picture: RGB, `size` x `size`.
        mask: (size, size) bool, True where it is to be edited.
        source, target: prompts, without brackets.
    """

    picture: Image.Image
    mask: np.ndarray
    source: str
    target: str


def entries(folder: Path, limit: int | None = None) -> dict[str, Any]:
    """What the mapping file says of the first `limit` images, by name, unchecked.

    Raises:
        ValueError: there is no such file, or it is no JSON object.
    """
    path = folder / MAPPING
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--data wants a folder with PIE-Bench's {MAPPING} in it; {str(path)!r}: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{str(path)!r} must hold one object, {{name: entry}}, with at least one entry")
    return dict(list(found.items())[:limit])


def digest(folder: Path, entry: Any) -> str:
    """SHA-256 over an entry and the bytes of its image, where there is one."""
    sha = hashlib.sha256(json.dumps(entry, sort_keys=True).encode())
    named = entry.get("image_path") if isinstance(entry, dict) else None
    if isinstance(named, str):
        with contextlib.suppress(OSError, ValueError):  # `read` says what is wrong with it
            sha.update((folder / IMAGES / named).read_bytes())
    return sha.hexdigest()


def read(folder: Path, name: str, entry: Any, size: int) -> Example:
    """An entry with its image, both brought to `size` pixels a side.

    Raises:
        ValueError, FileNotFoundError: a broken entry, or an image that is missing or cannot be read.
    """
    _check(name, entry)
    picture = images.load(folder / IMAGES / entry["image_path"])
    mask = decode(entry["mask"], picture.height, picture.width)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        mask = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
    return Example(picture, mask, plain(entry["original_prompt"]), plain(entry["editing_prompt"]))


def decode(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """(height, width) bool, True in the runs and on the border; a run that goes on behind the end is cut there.

    Raises:
        ValueError: no pairs of whole numbers, or a run that begins outside the image.
    """
    if not isinstance(runs, (list, tuple)) or len(runs) % 2 or not all(map(_is_count, runs)):
        raise ValueError(f"a mask is [start, length, ...], whole numbers of at least 0 in pairs; got {str(runs)[:60]}")
    found = np.zeros(height * width, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if start >= found.size:
            raise ValueError(f"the mask has a run from pixel {start}, and the image has {width} x {height} pixels")
        found[start : start + length] = True
    found = found.reshape(height, width)
    found[[0, -1]] = found[:, [0, -1]] = True
    return found


def encode(mask: np.ndarray) -> list[int]:
    """The runs of a mask (H, W), as `decode` reads them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8).ravel(), [0]])))
    return [int(n) for start, end in edges.reshape(-1, 2) for n in (start, end - start)]


def plain(prompt: str) -> str:
    """A prompt without the brackets."""
    return prompt.replace("[", "").replace("]", "")


def _check(name: str, entry: Any) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"entry {name!r} must be an object, got {type(entry).__name__}")
    for key in (*TEXTS, "mask"):
        if key not in entry:
            raise ValueError(f"entry {name!r} has no {key!r}")
    for key in TEXTS:
        if not isinstance(entry[key], str):
            raise ValueError(f"entry {name!r}: {key} must be text, got {entry[key]!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 0
