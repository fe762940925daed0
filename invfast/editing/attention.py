"""Attention between rows: processors of a private UNet in which an edit reads what its source shows it.

Rows of one image lie beside each other, the source first and the edit last. Whether a control acts is a flag an image,
a tensor, which each evaluation's time decides: no processor counts its calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0

MASACTRL, P2P, PORTRAIT = "masactrl", "prompt_to_prompt", "portrait"
PLAIN = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0)
SMALL = 16 * 16
"""Tokens up to which Prompt-to-Prompt takes over self-attention maps."""
FIRST = 5 / 8
"""Where MasaCtrl's layers begin, of all: 10 of 16."""
Flags = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Control:
    """What rows share, and from which self-attention layer on, counted as they run; None for `FIRST` of them."""

    kind: str
    layer: int | None = None


def controlled(unet: torch.nn.Module, control: Control, rows: int) -> torch.nn.Module:
    """A private UNet, changed in place: its attention layers run `control` between rows."""
    layers = in_order(unet)
    own = [each for each in layers if not each.is_cross_attention]
    first = round(FIRST * len(own)) if control.layer is None else control.layer
    number = {id(each): k for k, each in enumerate(own)}
    for each in layers:
        late = number.get(id(each), -1) >= first
        each.processor = Shared(control.kind, rows, late)
    return unet


def in_order(unet: torch.nn.Module) -> list[Attention]:
    """Attention layers of transformer blocks in the order they run: a UNet registers its way up before its middle."""
    places = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = [
        (places.get(name.split(".")[0], 0), part)
        for name, part in unet.named_modules()
        if isinstance(part, Attention) and name.split(".")[-1] in ("attn1", "attn2")
    ]
    return [part for _, part in sorted(found, key=lambda pair: pair[0])]


def unfit(unet: torch.nn.Module) -> str | None:
    """Why the attention of a UNet cannot be shared between rows, as the end of a sentence; None where it can."""
    layers = in_order(unet)
    if not layers:
        return "has no attention layers of transformer blocks"
    strange = sorted({type(each.processor).__name__ for each in layers if type(each.processor) not in PLAIN})
    if strange:
        return f"has attention processors of its own ({', '.join(strange)}), which would have to give way"
    if any(each.added_kv_proj_dim is not None for each in layers):
        return "has attention over image and text at once"
    return None


class Shared:
    """Attention in which the last of `rows` reads what the others show.

    Args:
        kind: of the control.
        rows: of one image.
        late: whether the layer is one that MasaCtrl and Portrait act in.
    """

    def __init__(self, kind: str, rows: int, late: bool) -> None:
        self.kind, self.rows, self.late = kind, rows, late

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        edit: Flags | None = None,
    ) -> torch.Tensor:
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        if cross and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = (_heads(each, attn.heads) for each in _projected(attn, hidden_states, context))
        q, k = attn.norm_q(q) if attn.norm_q else q, attn.norm_k(k) if attn.norm_k else k
        found = self._attend(*(each.unflatten(0, (-1, self.rows)) for each in (q, k, v)), cross, edit or {})
        merged = found.flatten(0, 1).transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](merged.to(q.dtype)))
        return (out + hidden_states if attn.residual_connection else out) / attn.rescale_output_factor

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cross: bool, edit: Flags) -> torch.Tensor:
        """(B, rows, heads, tokens, width) of each, and of the result."""
        if self.kind == P2P:
            return _words(q, k, v, edit) if cross else _looks(q, k, v, edit)
        if cross or not self.late:
            return _plain(q, k, v)
        return _masactrl(q, k, v, edit) if self.kind == MASACTRL else _portrait(q, k, v, edit)


def _masactrl(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edit: Flags) -> torch.Tensor:
    """The edit's queries over the source's keys and values."""
    on = _flag(edit["below"])
    return _plain(q, *(_last(each, torch.where(on, each[:, 0], each[:, -1])) for each in (k, v)))


def _portrait(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edit: Flags) -> torch.Tensor:
    """The edit's is a blend of the source's own and of the source's queries over the style, the row between."""
    own = _plain(q, k, v)
    styled = F.scaled_dot_product_attention(q[:, 0], k[:, 1], v[:, 1])
    blended = torch.lerp(own[:, 0], styled, edit["blend"].reshape(-1, 1, 1, 1).to(own.dtype))
    return _last(own, torch.where(_flag(edit["below"]), blended, own[:, -1]))


def _looks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edit: Flags) -> torch.Tensor:
    """The edit's values under the source's self-attention map: its queries and keys."""
    if q.shape[-2] <= SMALL:
        on = _flag(edit["self"])
        q, k = (_last(each, torch.where(on, each[:, 0], each[:, -1])) for each in (q, k))
    return _plain(q, k, v)


def _words(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edit: Flags) -> torch.Tensor:
    """The edit's cross-attention map from the source's: mapped from word to word, mixed with its own, and scaled."""
    maps = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    source, own = maps[:, 0], maps[:, -1]
    mix, scale = (edit[name].reshape(len(own), 1, 1, -1).to(own.dtype) for name in ("mix", "scale"))
    given = torch.lerp(own, source @ edit["map"].unsqueeze(1).to(own.dtype), mix) * scale
    return _last(maps, torch.where(_flag(edit["cross"]), given, own)) @ v


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every row by itself; exporters know attention of four dimensions."""
    out = F.scaled_dot_product_attention(*(each.flatten(0, 1) for each in (q, k, v)))
    return out.unflatten(0, (-1, q.shape[1]))


def _last(rows: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The rows with another one last."""
    return torch.cat([rows[:, :-1], new.unsqueeze(1)], 1)


def _flag(on: torch.Tensor) -> torch.Tensor:
    return on.reshape(-1, 1, 1, 1)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _projected(attn: Attention, x: torch.Tensor, context: torch.Tensor) -> tuple[Any, ...]:
    if hasattr(attn, "to_qkv"):  # made one for a compiled network
        return attn.to_qkv(x).chunk(3, -1)
    return attn.to_q(x), attn.to_k(context), attn.to_v(context)
