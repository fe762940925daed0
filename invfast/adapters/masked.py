"""Texts of any length, for networks that are told which tokens are words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from invfast.adapters import texts
from invfast.denoiser import EMBEDS, MASK

if TYPE_CHECKING:
    from invfast.adapters.base import Adapter


def told(
    model: Adapter,
    batch: int,
    said: list[str] | None,
    embeds: Any,
    mask: Any,
    encode: Callable[[str], tuple[torch.Tensor, torch.Tensor | None]],
    width: int,
    names: tuple[str, str] = ("prompt_embeds", "prompt_embeds_mask"),
) -> dict[str, torch.Tensor]:
    """What one branch is told by texts of any length: embeddings (B, tokens, width) and which are words, (B, tokens).

    Args:
        model: whose encoder.
        batch: B.
        said: texts, one an image; None is "".
        embeds: the caller's in their place, or a list of one an image, (tokens, width).
        mask: of the caller's; None where all are words.
        encode: text -> (1, tokens, width), and its mask (1, tokens) or None.
        width: of one embedding.
        names: of embeddings and mask.

    Raises:
        ValueError: as `given`, a mask without embeddings or of another shape, or texts that nothing here can encode.
    """
    name, of_mask = names
    if embeds is None:
        if mask is not None:
            raise ValueError(f"{of_mask} goes with {name}; pass both, or neither")
        said = [""] * batch if said is None else said
        texts.check_encoders(
            model.encoders(), name.removesuffix("_embeds"), said, f"{name}, (1 or {batch}, tokens, {width})"
        )
        with texts.alone(model):
            found = {text: encode(text) for text in dict.fromkeys(said)}
        return padded([_words(*found[text]) for text in said])
    if isinstance(embeds, (list, tuple)) and len(embeds) in (1, batch) and mask is None:
        each = [
            texts.given(one[None], 1, f"{name}[{j}]", ("tokens", width), model.device)[0]
            for j, one in enumerate(embeds)
        ]
        return padded(each * (batch // len(each)))
    rows = texts.given(embeds, batch, name, ("tokens", width), model.device)
    if mask is None:
        return {EMBEDS: rows, MASK: torch.ones(rows.shape[:2], dtype=torch.int64, device=model.device)}
    shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else None
    if shape not in [(n, rows.shape[1]) for n in (1, batch)] or not bool((mask != 0).any(1).all()):
        raise ValueError(
            f"{of_mask} must be a tensor of shape (1 or {batch}, {rows.shape[1]}) with a word in every row, got "
            f"{type(mask).__name__ if shape is None else shape}"
        )
    return {EMBEDS: rows, MASK: (mask != 0).long().to(model.device).expand(batch, -1)}


def padded(each: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Embeddings of texts, (tokens, width) each, as a batch with its mask: zeros after the words."""
    masks = [torch.ones(len(one), dtype=torch.int64, device=one.device) for one in each]
    side_by_side = torch.nn.utils.rnn.pad_sequence
    return {EMBEDS: side_by_side(each, batch_first=True), MASK: side_by_side(masks, batch_first=True)}


def _words(embeds: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One text's (1, tokens, width) without what is no word."""
    return embeds[0] if mask is None else embeds[0][mask[0].bool()]
