"""Images drawn from known noise, and their inversions, a file a shard and method: a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.claims.subjects import SEED, Subject
from invfast import Inversion, invert
from invfast.analysis import Recording, record
from invfast.methods import Method, to_dict

OWN = 7_000_000
"""Seed of what methods draw for the first image."""
SCHEMA = 1
"""Raised when a file changes its meaning."""


class Shards:
    """A subject's files.

    Args:
        subject: what they are of.
        folder: where they lie; each configuration has a folder of its own in it.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        settings = [SCHEMA, SEED, subject.steps, subject.each, subject.shape, subject.prompts(), subject.weights]
        self.folder = folder / f"{subject.name}-{_digest(settings)}"

    def drawn(self, shard: int) -> Inversion:
        """The noise, as "latents", and the images drawn from it, as "init_latents"."""
        path = self.folder / f"{shard:03}.safetensors"
        if not path.exists():
            self._save(self.recorded(self.subject.noise(shard)).inversion, path)
        return Inversion.load(path)

    def inverted(self, shard: int, method: Method) -> Inversion:
        """What a method finds of a shard's images."""
        path = self.folder / f"{shard:03}-{_digest(to_dict(method))}.safetensors"
        if not path.exists():
            # Noise of their own: drawn again in every shard, it would make latents alike that have nothing in common.
            begin = OWN + shard * self.subject.each
            own = [torch.Generator().manual_seed(begin + j) for j in range(self.subject.each)]
            found = self.invert(self.drawn(shard), method, generator=own)
            found.state = {}  # EDICT's partner and the like: no figure asks for it
            self._save(found, path)
        return Inversion.load(path)

    def several(self, shards: Iterable[int], method: Method | None = None) -> Inversion:
        """Shards as one; without a method the noise itself."""
        return Inversion.concatenate([self.drawn(j) if method is None else self.inverted(j, method) for j in shards])

    def recorded(self, noise: torch.Tensor) -> Recording:
        """What is drawn from noise under the shard's prompts, with all of the way: too large to keep."""
        given = {"num_inference_steps": self.subject.steps, "runtime": "eager"}
        return record(self.subject.pipe, noise, self.subject.prompts(len(noise)), **given)

    def invert(self, drawn: Inversion, method: Method, **options: object) -> Inversion:
        """An inversion of a shard's images, or of the first of them."""
        given = {"num_inference_steps": self.subject.steps, "runtime": "eager", **options}
        return invert(self.subject.pipe, drawn, self.subject.prompts(len(drawn)), method=method, **given)

    def _save(self, inversion: Inversion, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        inversion.save(path)


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
