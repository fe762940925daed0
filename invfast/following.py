"""The way back follows its inversion: the same runtime, dtype and precomputed parts where nothing else is asked for.

A network in another dtype is another function: undone in bfloat16, what an exact method found in float32 lost 86 dB.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from invfast import adapters
from invfast.adapters import Adapter
from invfast.inversion import Inversion, Stats
from invfast.warned import warn

logger = logging.getLogger("invfast")


def following(
    inversion: Inversion,
    pipe: Any,
    runtime: str | None,
    dtype: torch.dtype | str | None,
    precompute: Sequence[str] | None,
) -> Adapter:
    """The pipeline for the way back: where and as the inversion ran, as far as the caller does not say otherwise."""
    make, stats = adapters.resolve(pipe), inversion.stats
    runtime = "auto" if runtime is None else runtime
    if stats is None:  # made by hand, from latents alone
        return make(pipe, runtime, dtype, precompute=precompute)
    wanted = stats.runtime if runtime == "auto" else runtime, stats.dtype if dtype is None else dtype
    try:
        if wanted[1] is not dtype and stats.dtype == torch.float16 and _left_gpu(stats, pipe):
            raise ValueError("float16 is slow on a CPU and overflows")
        model = make(pipe, *wanted, precompute=precompute)
        if wanted != (runtime, dtype):
            model.denoiser.reason = "as the inversion ran"
    except (RuntimeError, ValueError) as error:
        if wanted == (runtime, dtype):
            raise
        model = make(pipe, runtime, dtype, precompute=precompute)
        there = f"{stats.runtime}, {_name(stats.dtype)}"
        here = f"{model.denoiser.runtime.name}, {_name(model.denoiser.dtype)}"
        warn(f"the inversion ran in {there}, and is rebuilt in {here}: {error}")
    if dtype is not None and model.denoiser.dtype != stats.dtype:
        logger.warning("rebuilding in %s what was inverted in %s", _name(model.denoiser.dtype), _name(stats.dtype))
    if precompute is None:
        ready = model.denoiser
        ready.precomputed = tuple(part for part in ready.precomputed if part in stats.precomputed)
    return model


def _left_gpu(stats: Stats, pipe: Any) -> bool:
    return not stats.device.startswith("cpu") and torch.device(pipe._execution_device).type == "cpu"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
