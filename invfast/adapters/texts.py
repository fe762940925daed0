"""Texts and embeddings, as callers give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
    with alone(model):
        return encoded(said, encode)[0]


def pooled(
    model: Adapter,
    batch: int,
    said: list[str] | None,
    embeds: torch.Tensor | None,
    more: Mapping[str, Any],
    encode: Callable[[tuple[str, ...]], tuple[torch.Tensor, torch.Tensor]],
    widths: tuple[int | str, int | str],
    prefix: str = "",
    others: tuple[str, ...] = ("prompt_2",),
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one branch is told by several text encoders: embeddings (B, tokens, width) and pooled ones (B, width).

    Args:
        model: whose encoders.
        batch: B.
        said: texts for all encoders, one an image.
        embeds: the caller's in their place.
        more: what else the caller said: pooled embeddings, texts for one encoder alone.
        encode: (text for each encoder, in order) -> embeddings and pooled ones, (1, ...).
        widths: of both.
        prefix: "negative_" of the other branch.
        others: names of the texts for the later encoders, without the prefix.

    Raises:
        ValueError: one is missing without the other, texts beside embeddings, or texts that nothing here can encode.
    """
    name, both = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
    others = tuple(f"{prefix}{each}" for each in others)
    if embeds is not None:
        extra = [each for each in others if each in more]
        if said is None and extra:  # else a text that the way back replaces
            raise ValueError(f"{extra[0]} is a text and {name} stands in place of texts; pass one of them")
        if both not in more:
            raise ValueError(f"{name} needs {both} beside it, (1 or {batch}, {widths[1]})")
        rows = given(embeds, batch, name, ("tokens", widths[0]), model.device)
        return rows, given(more[both], batch, both, widths[1:], model.device)
    if both in more:
        raise ValueError(f"{both} goes with {name}; pass both, or neither")
    said = [""] * batch if said is None else said
    check_encoders(model.encoders(), f"{prefix}prompt", said, f"{name} and {both}")
    every = (said, *(more.get(each, said) for each in others))
    asked = [(first, *(text or first for text in rest)) for first, *rest in zip(*every, strict=True)]  # diffusers' ""
    with alone(model):
        return encoded(asked, encode)


@contextmanager
def alone(model: Adapter) -> Iterator[None]:
    """Holds the locks of a pipeline's tokenizers, in one order: a call of one sets how it pads and truncates."""
    tokenizers = [each for name, each in model.encoders().items() if "tokenizer" in name and each is not None]
    locks = {id(lock): lock for lock in map(lock_of, tokenizers)}
    with ExitStack() as stack:
        for _, lock in sorted(locks.items()):
            stack.enter_context(lock)
        yield


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
