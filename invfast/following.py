"""The way back follows its inversion: the same runtime, dtype and precomputed parts where nothing else is asked for.

A network in another dtype is another function: undone in bfloat16, what an exact method found in float32 lost 86 dB.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from invfast import adapters, arguments, grids
from invfast.adapters import Adapter
from invfast.arguments import Text
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


def said(
    inversion: Inversion,
    prompt: Text | None,
    negative_prompt: Text | None,
    prompt_embeds: torch.Tensor | None = None,
    negative_prompt_embeds: torch.Tensor | None = None,
) -> tuple[list[str] | None, list[str] | None]:
    """(prompts, negative prompts): the inversion's, but where a caller gives others."""
    given = (prompt, prompt_embeds, "prompt"), (negative_prompt, negative_prompt_embeds, "negative_prompt")
    for text, embeds, name in given:
        if text is not None and embeds is not None:
            raise ValueError(f"pass {name} or {name}_embeds, not both")
    positive, negative = (
        getattr(inversion, name) if text is None else arguments.each(text, len(inversion), name)
        for text, _, name in given
    )
    return positive, negative


def untold(inversion: Inversion, prompt: Text | None, negative_prompt: Text | None) -> dict[str, Any]:
    """An inversion's conditions, but other encoders' prompts where the first one's is replaced."""
    gone = tuple(f"{n}prompt_" for n, text in (("", prompt), ("negative_", negative_prompt)) if text is not None)
    return {name: value for name, value in inversion.conditions.items() if not name.startswith(gone)}


def check_match(
    model: Adapter, inversion: Inversion, prompt_embeds: torch.Tensor | None, prompt: Text | None = None
) -> None:
    """Raises ValueError where a pipeline and a prompt cannot lead an inversion back."""
    grids.check_prediction(model.pipe.scheduler, inversion.schedule)
    channels = model.denoiser.form.channels
    if inversion.latents.ndim != 4 or inversion.latents.shape[1] != channels:
        raise ValueError(
            f"latents of shape {tuple(inversion.latents.shape)} do not fit the pipeline: expected (B, {channels}, h, w)"
        )
    if inversion.prompt is None and prompt_embeds is None and prompt is None:
        raise ValueError("this inversion was made with prompt_embeds; pass the same prompt_embeds to reconstruct()")
    for name in ("prompt", "negative_prompt"):
        texts = getattr(inversion, name)
        if texts is not None and len(texts) != len(inversion.latents):
            raise ValueError(f"the inversion has {len(texts)} texts in {name} for {len(inversion.latents)} latents")
