"""Texts and embeddings, as callers give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from invfast.adapters import unets
from invfast.denoiser import EMBEDS, Condition
from invfast.locks import lock_of

if TYPE_CHECKING:
    from invfast.adapters.base import Adapter, Prompts

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
T = TypeVar("T")


def encoded(texts: list[T], encode: Callable[[T], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """What `encode` gives for each, side by side (B, ...): each distinct one asked once and alone, so that no image
    depends on its batch.
    """
    found = {text: encode(text) for text in dict.fromkeys(texts)}
    return tuple(torch.cat(rows) for rows in zip(*(found[text] for text in texts), strict=True))


def conditions(
    model: Adapter, batch: int, prompts: Prompts, scale: float, encode: Callable[[str], tuple[torch.Tensor, ...]]
) -> Condition:
    """Embeddings of prompts, and under guidance of negative ones, for a network that is told nothing else.

    `encode` gives those of one text, (1, tokens, width).
    """
    positive = {EMBEDS: _embedded(model, batch, prompts.texts, prompts.embeds, "prompt_embeds", encode)}
    if model.guidance(scale) <= 1:
        return positive, None
    said = [""] * batch if prompts.negative is None else prompts.negative
    return positive, {EMBEDS: _embedded(model, batch, said, prompts.negative_embeds, "negative_prompt_embeds", encode)}


def _embedded(
    model: Adapter,
    batch: int,
    said: list[str] | None,
    embeds: torch.Tensor | None,
    name: str,
    encode: Callable[[str], tuple[torch.Tensor, ...]],
) -> torch.Tensor:
    """(B, tokens, width)."""
    width = unets.text_width(model.pipe.unet) or "width"
    if embeds is not None:
        return given(embeds, batch, name, ("tokens", width), model.device)
    instead = f"{name}, (1 or {batch}, tokens, {width})"
    check_encoders(model.encoders(), name.removesuffix("_embeds"), said, instead)
    with lock_of(model.pipe.tokenizer):  # a call of it sets how it pads and truncates
        return encoded(said, encode)[0]


def check_encoders(encoders: Mapping[str, Any], name: str, texts: list[Any], instead: str) -> None:
    """Raises ValueError where texts cannot be encoded; `instead` says what to pass."""
    missing = [part for part, there in encoders.items() if there is None]
    if missing:
        raise ValueError(
            f"{name} {texts[0]!r} cannot be encoded: the pipeline has no {' and no '.join(missing)}; pass {instead}, "
            "or load the pipeline with what is missing"
        )


def given(embeds: Any, batch: int, name: str, shape: tuple[int | str, ...], device: torch.device) -> torch.Tensor:
    """The caller's embeddings for every image, (B, ...): a copy, for what a result keeps must not change with theirs.

    Args:
        embeds: what the caller passed, (1 or B, ...).
        batch: B.
        name: of the argument.
        shape: of one image's, a number, or a word where any will do.
        device: where it goes.

    Raises:
        ValueError: it is something else, not of floats, or not finite.
    """
    got = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else None
    fits = got is not None and len(got) == 1 + len(shape) and got[0] in (1, batch) and all(got[1:])
    if not fits or any(isinstance(wanted, int) and wanted != n for wanted, n in zip(shape, got[1:], strict=True)):
        rows = "1" if batch == 1 else f"1 or {batch}"
        raise ValueError(
            f"{name} must be a tensor of shape ({', '.join(map(str, (rows, *shape)))}), got "
            f"{type(embeds).__name__ if got is None else got}"
        )
    if embeds.dtype not in FLOATS or embeds.layout != torch.strided or embeds.is_meta:
        raise ValueError(
            f"{name} must be a dense tensor of floats with values, got {embeds.dtype}, {embeds.layout}, on "
            f"{embeds.device}"
        )
    if not bool(embeds.isfinite().all()):
        raise ValueError(f"{name} has non-finite values")
    rows = embeds.detach().to(device, copy=True)
    return rows.expand(batch, *rows.shape[1:])
