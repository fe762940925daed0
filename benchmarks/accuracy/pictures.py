"""The images: some trained on, some not, two that are plain, and some that the model draws itself. All are fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from invfast import demo
from training import batches, data

RUNS = Path(__file__).parents[2] / "training" / "runs"
SEED, EACH, SIDE = 2410, 16, 64
PLAIN = ("white", "black")
"""Kinds whose latents have hardly any range, which the peak of the latent PSNR is: shown apart from all others."""


@dataclass(frozen=True)
class Pictures:
    """Images of one size with their prompts and what kind each is; `drawn` ones come from noise of that many seeds."""

    prompts: list[str]
    kinds: list[str]
    images: list[Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """SHA-256 over prompts, kinds and pixels."""
        sha = hashlib.sha256(repr((self.prompts, self.kinds)).encode())
        for image in self.images or ():
            sha.update(f"{image.mode}{image.size}".encode() + image.tobytes())
        return sha.hexdigest()


def count_of(name: str) -> int:
    """How many images a set has, without making it."""
    fixed = {"full": 4 * EACH + 2, "quick": 6, "white": 1}
    return fixed[name] if name in fixed else int(name.split()[1])


def load(name: str, runs: Path = RUNS) -> Pictures:
    """A set by name: "full", "quick", "white", "bundled N" or "drawn N".

    Args:
        name: "full" is 64 images from the training data and two plain ones; it needs the packages they come from.
        runs: where training keeps its downloads.

    Raises:
        ValueError: no such set.
        RuntimeError, ImportError: the training data cannot be had.
    """
    if name == "full":
        return _joined(_training(runs), _plain(*PLAIN))
    if name == "quick":
        return _joined(_bundled(4), _plain(*PLAIN))
    if name == "white":
        return _plain("white")
    kind, _, number = name.partition(" ")
    if kind not in ("bundled", "drawn") or not number.isdecimal() or not 0 < int(number) <= len(demo.PROMPTS):
        raise ValueError(
            f"unknown set of images {name!r}; expected 'full', 'quick', 'white', 'bundled N' or 'drawn N', N at most 16"
        )
    found = _bundled(int(number))
    return found if kind == "bundled" else Pictures(found.prompts, ["drawn"] * len(found))


def _bundled(count: int) -> Pictures:
    samples = list(demo.load_images().values())[:count]
    return Pictures([s.prompt for s in samples], ["bundled"] * count, [s.image for s in samples])


def _plain(*names: str) -> Pictures:
    return Pictures([""] * len(names), list(names), [Image.new("RGB", (SIDE, SIDE), name) for name in names])


def _training(runs: Path) -> Pictures:
    """Sixteen each: emoji and photograph crops of the kinds trained on, and of those held out."""
    found, rng = data.fetch(runs / "data"), np.random.default_rng(SEED)
    sources: dict[str, tuple[list, Callable]] = {
        "emoji": (found.emoji, batches.compose),
        "held-out emoji": (found.held_emoji, batches.compose),
        "photographs": (found.photos, batches.crop),
        "held-out photographs": (found.held_photos, batches.crop),
    }
    prompts, kinds, images = [], [], []
    for kind, (items, make) in sources.items():
        order = rng.permutation(len(items))
        for j in range(EACH):
            item = items[order[j % len(items)]]  # there are but two held-out photographs: they take turns
            images.append(Image.fromarray(make(item, rng, SIDE)))
            prompts.append(item.caption)
            kinds.append(kind)
    return Pictures(prompts, kinds, images)


def _joined(a: Pictures, b: Pictures) -> Pictures:
    return Pictures(a.prompts + b.prompts, a.kinds + b.kinds, a.images + b.images)
