"""EasyInv's figure of MasaCtrl edits, one column a method: "a peach" to "a football"."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.claims.shards import Shards
from benchmarks.claims.subjects import Subject
from invfast import demo, edit, editing, invert, metrics, reconstruct
from invfast.figures import grid
from invfast.methods import METHODS, Auto, ForwardStart

PAIRS = (("peach", "twemoji soccer ball"), ("cat_face", "noto strawberry"), ("house", "twemoji rocket"))
GUIDANCE, START = 3.0, 4 / 50
"""MasaCtrl's share of steps before its control begins."""
WAYS = {
    "DDIM": METHODS["ddim"],
    "EasyInv": METHODS["easyinv"],
    "ReNoise": METHODS["renoise"],
    "fixed point": METHODS["fixed_point"],
    "forward start 2": ForwardStart(2),
    "auto": Auto(),
}


def rows(shards: Shards) -> Iterator[dict[str, Any]]:
    """A row a method: PSNR in dB of the reconstructions, and how far the edits are from the source."""
    for name, (back, edits, source) in made(shards.subject).items():
        there, again, edited = (pixels(each) for each in (source, back, edits))
        psnr, moved = metrics.psnr(again, there).median(), (edited - there).square().mean().sqrt()
        yield {"method": name, "psnr": float(psnr), "moved": float(moved), "n": len(source)}


def picture(shards: Shards) -> Image.Image:
    """Reconstructions and edits."""
    found = made(shards.subject)
    lines, names = [], []
    for j, (name, target) in enumerate(PAIRS):
        source = next(iter(found.values()))[2][j]
        lines += [[source, *(way[kind][j] for way in found.values())] for kind in (0, 1)]
        names += [f"{demo.PROMPTS[name]}, reconstructed", f"edited: {target}"]
    return grid(lines, ["source", *found], names, 96)


@functools.cache
def made(subject: Subject) -> dict[str, tuple[list[Image.Image], ...]]:
    """Of each method the reconstructions, edits and sources."""
    pipe, steps = subject.pipe, subject.steps
    samples = demo.load_images()
    sources, prompts = zip(*(samples[name] for name, _ in PAIRS), strict=True)
    found = {}
    for name, method in WAYS.items():
        there = invert(pipe, list(sources), list(prompts), method=method, num_inference_steps=steps, runtime="eager")
        back = reconstruct(pipe, there, runtime="eager").images
        chosen = editing.MasaCtrl(step=round(START * steps))
        targets = [target for _, target in PAIRS]
        edits = edit(pipe, there, targets, method=chosen, guidance_scale=GUIDANCE, runtime="eager").images
        found[name] = (back, edits, list(sources))
    return found


def pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """(n, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).permute(0, 3, 1, 2) / 255
