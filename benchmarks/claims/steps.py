"""Where the error comes from: what is predicted at each step, in plain areas and elsewhere, and steps swapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.claims.shards import Shards
from invfast import rows as tables
from invfast.analysis import Recording, correlation, geometry, plain_areas, swap_up
from invfast.methods import METHODS

SWAPPED = (0, 1, 2, 3, 5, 10)


def rows(shards: Shards) -> Iterator[dict[str, Any]]:
    """A row a step of DDIM's inversion, then one a number of steps that were swapped."""
    subject = shards.subject
    recording = shards.recorded(subject.noise(0))
    noise, images, plain = recording.noise, recording.latents, subject.plain(recording.latents)
    inversion = shards.invert(recording.inversion, METHODS["ddim"], save_trajectory=True)
    yield from predicted(recording, inversion.trajectory, plain)
    nearer = geometry(images, noise, inversion.latents, recording.trajectory).nearer_noise
    yield {"what": "path", "n": len(noise), "nearer_noise": nearer}
    for k in (k for k in SWAPPED if k < inversion.schedule.num_steps):
        found = swap_up(subject.pipe, inversion, recording.outputs, k, runtime="eager").latents
        off = geometry(images, noise, found).noise_latent
        areas = plain_areas(found, plain, noise).as_dict()
        yield {"what": "swapped", "k": k, "n": len(noise), "to_noise": off, "top": correlation(found).top, **areas}


def predicted(recording: Recording, path: torch.Tensor, plain: torch.Tensor) -> Iterator[dict[str, Any]]:
    """What the network said going up at each step, beside what it had said there going down."""
    down = tables.down(recording.schedule)[:, 0]
    said = recording.outputs.flip(0)
    for i, (p, q) in enumerate(down.tolist()):
        output = (path[i].double() - p * path[i + 1].double()) / q
        areas = plain_areas(output, plain, said[i]).as_dict()
        true = plain_areas(said[i], plain).as_dict()
        names = ("error_inside", "error_outside", "std_inside", "std_outside")
        beside = {f"true_{name}": true[name] for name in names[2:]}
        yield {"what": "step", "step": i, **{name: areas[name] for name in names}, **beside, "n": len(output)}
