"""What an inversion was made with: names, versions, digests; and whether a pipeline still is that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch

from invfast.adapters import Adapter, Condition
from invfast.digests import tensor_digest, weights_digest
from invfast.methods import Method
from invfast.schedule import Schedule

MEANING = {
    "betas": "the scheduler's betas are",
    "weights": "the network's weights are",
    "vae": "the VAE's weights are",
    "prompt_embeds": "the prompt embeddings are",
    "negative_prompt_embeds": "the negative prompt embeddings are",
}
EMBEDS = "encoder_hidden_states"
PACKAGES = ("invfast", "torch", "diffusers", "transformers")


def record(model: Adapter, grid: Schedule, method: Method, condition: Condition) -> dict[str, Any]:
    """Plain values that say how an inversion was made, once it ran."""
    return {
        "pipeline": type(model.pipe).__name__,
        "schedule": grid.digest,
        **{f"schedule.{name}": value for name, value in grid.origin.items()},
        "method": repr(method),
        **{name: _version(name) for name in PACKAGES},
        "embeds_on": _place(condition),
        "quantised": model.quantised,
        **_digests(model, condition),
    }


def differences(made_with: Mapping[str, Any], model: Adapter, condition: Condition) -> Iterator[str]:
    """Names what a model and condition have otherwise; what either side did not record is passed over."""
    # Embeddings of one text differ in their last bits between devices and versions; only like is compared with like.
    comparable = made_with.get("embeds_on") == _place(condition)
    for name, digest in _digests(model, condition).items():
        if "embeds" in name and not comparable:
            continue
        if None not in (made_with.get(name), digest) and made_with[name] != digest:
            yield MEANING[name]


def requantised(made_with: Mapping[str, Any], model: Adapter) -> bool:
    """Whether the int8 network that ran is another than the inversion's: other ranges, or made by other versions."""
    return None not in (made_with.get("quantised"), model.quantised) and made_with["quantised"] != model.quantised


def _digests(model: Adapter, condition: Condition) -> dict[str, str | list[str] | None]:
    pipe, (positive, negative) = model.pipe, condition
    return {
        "betas": tensor_digest(getattr(pipe.scheduler, "alphas_cumprod", None)),
        "weights": model.weights,
        "vae": weights_digest(pipe.vae) if hasattr(pipe, "vae") else None,
        "prompt_embeds": _row_digests(positive.get(EMBEDS)),
        "negative_prompt_embeds": _row_digests((negative or {}).get(EMBEDS)),
    }


def _row_digests(rows: torch.Tensor | None) -> list[str] | None:
    """One digest an image."""
    return None if rows is None else [tensor_digest(row) for row in rows]


def _place(condition: Condition) -> str | None:
    value = condition[0].get(EMBEDS)
    if value is None:
        return None
    return f"{value.device.type}, {str(value.dtype).removeprefix('torch.')}, torch {torch.__version__}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
