"""Edits under other prompts: how far they go, and how much they differ from one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.claims.shards import Shards
from benchmarks.claims.subjects import AUTO, started
from invfast import demo, edit

GUIDANCE, TARGETS, SOURCES = 3.0, 6, 16
WAYS = ("ddim", started(2), AUTO)


def rows(shards: Shards) -> Iterator[dict[str, Any]]:
    """A row a method, after edits from the noise that the images were drawn from."""
    subject = shards.subject
    count = min(SOURCES, subject.each // 4)
    drawn = shards.drawn(0)[:count]
    source = subject.pictures(drawn.init_latents).clamp(-1, 1)
    plain = subject.plain(drawn.init_latents)
    known = list(demo.PROMPTS.values())
    options = {"guidance_scale": GUIDANCE, "runtime": "eager", "output_type": "latent"}
    for name, method in {"the noise": None, **subject.methods()}.items():
        if method is not None and name not in WAYS:
            continue
        found = shards.several((0,), method)[:count]
        begun = replace(drawn, latents=found.latents)
        made = []
        for turn in range(1, TARGETS + 1):
            targets = [known[(j + 2 * turn) % len(known)] for j in range(len(drawn))]
            made.append(subject.pictures(edit(subject.pipe, begun, targets, **options).latents).clamp(-1, 1))
        yield {"method": name, **figures(torch.stack(made), source, plain)}


def figures(edits: torch.Tensor, source: torch.Tensor, plain: torch.Tensor) -> dict[str, Any]:
    """Of (targets, n, 3, H, W) edits: their distance from the source and from each other, root mean square.

    "each" has two of the figures by source, for how sure a difference between methods is; None without plain pixels.
    """
    moved = (edits - source).square().mean(2)
    pairs = apart(edits)
    by_source = [rms(moved[:, j, mask]) if mask.any() else None for j, mask in enumerate(plain)]
    return {
        "n": edits.shape[0] * edits.shape[1],
        "moved": rms(moved),
        "moved_inside": rms(moved[:, plain]),
        "moved_outside": rms(moved[:, ~plain]),
        "diversity": rms(pairs),
        "diversity_inside": rms(pairs[:, plain]),
        "diversity_outside": rms(pairs[:, ~plain]),
        "each": {"diversity": [rms(pairs[:, j]) for j in range(len(source))], "moved_inside": by_source},
    }


def apart(edits: torch.Tensor) -> torch.Tensor:
    """(pairs, n, H, W) squares between the edits of each source."""
    first, second = torch.triu_indices(len(edits), len(edits), 1)
    return (edits[first] - edits[second]).square().mean(2)


def rms(squares: torch.Tensor) -> float:
    """Their mean's root."""
    return float(squares.mean().sqrt())
