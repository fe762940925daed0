"""`prepare`: a pipeline's network made ready ahead of time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from invfast import adapters, flows, runtimes
from invfast.adapters import Prompts
from invfast.ambient import neutral


class Prepared(NamedTuple):
    """Where a network is ready to run, and how long that took."""

    runtime: str
    dtype: torch.dtype
    reason: str
    seconds: float


@neutral()
def prepare(
    pipe: Any,
    *,
    height: int,
    width: int,
    batch_size: int = 1,
    guidance_scale: float = 1.0,
    runtime: str = "auto",
    dtype: torch.dtype | str | None = None,
    capability: int | None = None,
    precompute: Sequence[str] | None = None,
    **conditions: Any,
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
        capability: of the GPU an engine is for, 86 for 8.6, where it is not this machine's: runtime "tensorrt_rtx"
            builds it without one. The engine goes into the cache and is found by a machine with the same versions,
            the same weights in the same dtype, and that cache.
        precompute: as in `invert`, and the same as there: a network that is given keys and values is another one.
        **conditions: as in `invert`, where the network cannot do without.

    Raises:
        ValueError, RuntimeError, OSError: as in `invert`; or the runtime builds for no such GPU.
    """
    began = time.perf_counter()
    model = _model(pipe, runtime, dtype, capability, precompute)
    with model.session():
        ready, x = model.denoiser, model.encode(Image.new("RGB", (width, height)), height, width)
        x = x.expand(batch_size, *x.shape[1:])
        prompts = Prompts([""] * batch_size, more=model.check(batch_size, conditions))
        condition = model.condition(x, prompts, guidance_scale)
        # Of the kind that a grid's times are: engines take no other.
        ready.predictor(x, torch.tensor([0.0 if flows.is_flow(pipe.scheduler) else 0]), condition)
    return Prepared(ready.runtime.name, ready.dtype, ready.reason, time.perf_counter() - began)


def _model(
    pipe: Any, runtime: str, dtype: torch.dtype | str | None, capability: int | None, precompute: Sequence[str] | None
) -> adapters.Adapter:
    make = adapters.resolve(pipe)
    if capability is None:
        return make(pipe, runtime, dtype, precompute=precompute)
    return make(pipe, runtimes.ahead_of_time(runtime, capability), dtype, precompute=precompute)
