"""What is measured: models, keys, images, methods."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from invfast import demo
from invfast.digests import tensor_digest
from invfast.figures import encode
from invfast.files import write_atomically
from invfast.images import load as load_image
from invfast.watermark import GaussianShading, Key, RingID, TreeRing, sample, shape_of
from invfast.watermark.attacks import ATTACKS

FOLDER = Path(__file__).parents[2] / "out" / "watermark"
STEPS = 20
"""Of sampling and of inversion."""
KEYS = 8
"""Keys a scheme: image j has number j modulo 8, and an image without a watermark is asked for all of them."""
DECODER = ", decoder"
"""Ends a method that begins with the decoder's latents in place of the encoder's, `invert(encode="decoder")`."""
EVERY = ("ddim", "easyinv", "obelm", "forward_start(2)", "auto(budget=1.2)", "auto", "ddim, decoder", "auto, decoder")
SHORT = ("ddim", "auto(budget=1.2)")


@dataclass(frozen=True)
class Case:
    """One way images are made and read.

    Args:
        name: as in rows.
        flow: the bundled rectified flow instead.
        guidance: of sampling; inversions have none.
        prompted: whether who looks for the watermark knows the prompt.
        methods: by attack.
        plain, marked: images without a watermark, and with each scheme's; under attack `share` of them.
    """

    name: str
    flow: bool
    guidance: float
    prompted: bool
    methods: dict[str, tuple[str, ...]]
    plain: int
    marked: int
    share: float = 1.0

    def counts(self, attack: str) -> tuple[int, int]:
        """(plain, marked) images under an attack."""
        share = 1.0 if attack == "none" else self.share
        return round(self.plain * share), round(self.marked * share)


CASES = (
    Case(
        "guidance 7.5, prompt unknown",
        False,
        7.5,
        False,
        {attack: EVERY if attack == "none" else SHORT for attack in ATTACKS},
        80,
        40,
        0.5,
    ),
    Case("guidance 1, prompt known", False, 1.0, True, {"none": ("ddim", "obelm", "auto(budget=1.2)", "auto")}, 40, 20),
    Case(
        "flow, guidance 3.5, prompt unknown", True, 3.5, False, {"none": ("ddim", "auto(budget=1.2)", "auto")}, 24, 12
    ),
)


def secret(scheme: str, j: int) -> str:
    """The same in every run."""
    return hashlib.sha256(f"{scheme} {j}".encode()).hexdigest()


def bits(scheme: str, j: int, count: int) -> str:
    return f"{int(secret(f'{scheme} message', j), 16):0256b}"[-count:]


def tree_ring(shape: tuple[int, int, int], j: int) -> Key:
    return TreeRing(shape, secret("tree_ring", j), "ring", 6, shape[0] - 1)


def gaussian_shading(shape: tuple[int, int, int], j: int) -> Key:
    """64 bits, 16 copies of each."""
    return GaussianShading(shape, secret("gaussian_shading", j), bits("gaussian_shading", j, 64), (1, 4, 4), "00")


def ring_id(shape: tuple[int, int, int], j: int) -> Key:
    return RingID(shape, secret("ring_id", j), bits("ring_id", j, 6), 7, 1, (shape[0] - 1,), (0,))


SCHEMES: dict[str, Callable[[tuple[int, int, int], int], Key]] = {
    "tree_ring": tree_ring,
    "gaussian_shading": gaussian_shading,
    "ring_id": ring_id,
}


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one group, none or one scheme's, 8 bits a value, with the noise they began with."""

    noise: torch.Tensor
    prompts: list[str]
    pictures: list[Image.Image]


def load(case: Case) -> Any:
    """The pipeline."""
    return demo.load_flow_pipeline() if case.flow else demo.load_pipeline()


def keys(scheme: str, pipe: Any) -> list[Key]:
    return [SCHEMES[scheme](shape_of(pipe, 64, 64), j) for j in range(KEYS)]


def make(case: Case, pipe: Any, scheme: str | None, runtime: str) -> Images:
    """The images of a case with a scheme's keys, or with none."""
    count = case.plain if scheme is None else case.marked
    generators = [torch.Generator().manual_seed(1000 * j + len(scheme or "")) for j in range(count)]
    if scheme is None:
        shape = shape_of(pipe, 64, 64)
        noise = torch.cat([torch.randn(1, *shape, generator=each) for each in generators])
    else:
        every = keys(scheme, pipe)
        noise = torch.cat([every[j % KEYS].embed(1, each) for j, each in enumerate(generators)])
    known = list(demo.PROMPTS.values())
    prompts = [known[j % len(known)] for j in range(count)]
    pictures: list[Image.Image] = []
    for start in range(0, count, 8):
        part = slice(start, min(start + 8, count))
        how = {"num_inference_steps": STEPS, "guidance_scale": case.guidance, "runtime": runtime}
        pictures += kept(noise[part], prompts[part], pipe, how)
    return Images(noise, prompts, pictures)


def kept(noise: torch.Tensor, prompts: list[str], pipe: Any, how: dict[str, Any]) -> list[Image.Image]:
    """Images of latents, from out/watermark where an earlier run left them."""
    digest = hashlib.sha256(f"{tensor_digest(noise)}|{prompts}|{type(pipe).__name__}|{how}".encode()).hexdigest()
    files = [FOLDER / f"{digest[:16]}-{j}.png" for j in range(len(noise))]
    if not all(file.exists() for file in files):
        FOLDER.mkdir(parents=True, exist_ok=True)
        for file, image in zip(files, sample(pipe, noise, prompts, **how).images, strict=True):
            write_atomically(file, encode(image, ".png"))
    return [load_image(file) for file in files]
