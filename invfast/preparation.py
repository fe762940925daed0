"""`prepare`: a pipeline's network made ready ahead of time."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from PIL import Image

from invfast import adapters
from invfast.adapters import Prompts


class Prepared(NamedTuple):
    """Where a network is ready to run, and how long that took."""

    runtime: str
    dtype: torch.dtype
    reason: str
    seconds: float


def prepare(
    pipe: Any,
    *,
    height: int,
    width: int,
    batch_size: int = 1,
    guidance_scale: float = 1.0,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
) -> Prepared:
    """Readies a pipeline's network ahead of time: exported, in the cache, compiled, and kept for the next `invert`.

    Args:
        pipe: as in `invert`.
        height: of the images, a multiple of the VAE's factor.
        width: likewise.
        batch_size: images run at once.
        guidance_scale: above 1 each image takes two samples.
        runtime: as in `invert`.
        dtype: as in `invert`.

    Raises:
        ValueError, RuntimeError: as in `invert`.
    """
    began = time.perf_counter()
    model = adapters.resolve(pipe)(pipe, runtime, dtype)
    with model.session():
        x = model.encode(Image.new("RGB", (width, height)), height, width)
        condition = model.condition(batch_size, Prompts([""] * batch_size), guidance_scale)
        model.predictor(x.expand(batch_size, *x.shape[1:]), torch.tensor(0), condition)
    return Prepared(model.runtime.name, model.dtype, model.reason, time.perf_counter() - began)
