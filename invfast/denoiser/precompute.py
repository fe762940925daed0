"""What a network computes anew at every evaluation though it never changes, computed once before the loop instead.

    prompt   keys and values of the cross-attention: to_k(embeddings), to_v(embeddings), every layer
    times    the time embedding and what every residual block makes of it: proj(silu(mlp(sinusoids(t)))), every time;
             where sizes and pooled texts are embedded beside it, as SDXL's are, mlp(sinusoids(t)) and that of theirs

The network stays the one it is, but its inputs change: in place of the embeddings (B, tokens, width) it is given all
keys and values side by side, in place of the time all projections of it, and the layers that computed them now cut
out their part. So every runtime can run it, and what is embedded can still be replaced and differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D

from invfast.denoiser.clone import private

EMBEDS, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
"""Static inputs that more than one module knows by name: the text, and which of its tokens are words, (B, tokens)."""
GUIDANCE, SCALE = SCALES = ("timestep_cond", "guidance")
"""Those of guidance where it is no row: its embedding, and the scale (B,)."""
PROMPT, TIMES = PARTS = ("prompt", "times")
BLOCKS = {
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "DownBlock2D",
    "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
}
"""Whose residual blocks and attention are all that reads times and embeddings."""
MIXED = (
    "class_embed_type",
    "num_class_embeds",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
)
"""Settings that bring something else into the time embedding."""
TEXT_TIME, ADDED = "text_time", "added"
"""SDXL's addition_embed_type, and the input that takes the place of its two."""


def refusals(network: torch.nn.Module) -> dict[str, str]:
    """Of each part that cannot be computed beforehand the reason, as the end of a sentence."""
    if type(network) is not UNet2DConditionModel:
        why = f"{type(network).__name__} is no UNet2DConditionModel"
        return dict.fromkeys(PARTS, why)
    blocks = [*network.down_blocks, *network.up_blocks, *([network.mid_block] if network.mid_block is not None else [])]
    unknown = sorted({type(block).__name__ for block in blocks} - BLOCKS)
    if unknown:
        return dict.fromkeys(PARTS, f"it has blocks of another kind, {', '.join(unknown)}")
    found = {PROMPT: _prompt_refusal(network), TIMES: _times_refusal(network)}
    return {part: why for part, why in found.items() if why}


def _prompt_refusal(network: UNet2DConditionModel) -> str | None:
    if network.encoder_hid_proj is not None:
        return "it projects its embeddings first, as an IP-Adapter does"
    layers = _cross_attention(network)
    if not layers:
        return "it has no cross-attention"
    for layer in layers:
        if type(layer.processor) not in (AttnProcessor, AttnProcessor2_0):
            return f"attention processor {type(layer.processor).__name__} may look at the embeddings itself"
        if layer.added_kv_proj_dim is not None or layer.norm_cross or layer.fused_projections:
            return "its cross-attention does more to the embeddings than project them"
        for name in ("to_k", "to_v"):
            if type(getattr(layer, name)) is not torch.nn.Linear:
                return f"{name} of its cross-attention is {type(getattr(layer, name)).__name__}, as LoRA makes it"
    return None


def _times_refusal(network: UNet2DConditionModel) -> str | None:
    config = network.config
    for name in MIXED:
        if config.get(name) is not None:
            return f"its {name} mixes another input into the time embedding"
    if config.addition_embed_type not in (None, TEXT_TIME):
        return f"its addition_embed_type {config.addition_embed_type!r} mixes another input into the time embedding"
    if any(block.skip_time_act for block in _timed(network)):
        return "its residual blocks read the time embedding without activation"
    if any(type(block.time_emb_proj) is not torch.nn.Linear for block in _timed(network)):
        return "its time projections are not plain linear layers"
    return None


class Precomputed:
    """What the layers that a network does without compute, once a run.

    Args:
        network: the caller's, read only; nothing of the parts may be refused.
        parts: names in `PARTS`.
        dtype: the network's.
    """

    def __init__(self, network: torch.nn.Module, parts: Sequence[str], dtype: torch.dtype) -> None:
        keys_values = _layers(_keys_values(network)) if PROMPT in parts else []
        self._keys_values = _private(keys_values, dtype)
        self._sinusoids = self._mlp = self._added = None
        self._dtype, self._active, self._projections = dtype, [], torch.nn.ModuleList()
        if TIMES not in parts:
            return
        self._sinusoids, (self._mlp,) = network.time_proj, _private([network.time_embedding], dtype)
        if network.config.addition_embed_type == TEXT_TIME:
            self._sizes, (self._added,) = network.add_time_proj, _private([network.add_embedding], dtype)
        else:
            self._active = [block.nonlinearity for block in _timed(network)]
            self._projections = _private(_layers(_projections(network)), dtype)

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The private layers."""
        given = (self._keys_values, self._mlp, self._added, self._projections)
        return torch.nn.ModuleList([each for each in given if each is not None])

    @torch.no_grad()
    def times(self, t: torch.Tensor) -> TimeTable | None:
        """The table of a grid's times (n,); None where times are not computed beforehand."""
        if self._sinusoids is None:
            return None
        embedded = self._mlp(self._sinusoids(t).to(self._dtype))
        if self._added is not None:
            return TimeTable(t, embedded)
        pairs = zip(self._active, self._projections, strict=True)
        return TimeTable(t, torch.cat([projection(active(embedded)) for active, projection in pairs], -1))

    def static(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The static inputs of the network that is left, of those of the whole one."""
        found = dict(inputs)
        if EMBEDS in found:
            found[EMBEDS] = self.prompt(found[EMBEDS])
        if self._added is not None:
            texts, sizes = found.pop("text_embeds"), found.pop("time_ids")
            sizes = self._sizes(sizes.flatten()).reshape(len(texts), -1)
            found[ADDED] = self._added(torch.cat([texts, sizes], -1).to(self._dtype))
        return found

    def prompt(self, embeds: torch.Tensor) -> torch.Tensor:
        """Keys and values of every layer side by side, (B, tokens, sum of widths), of embeddings (B, tokens, width)."""
        return torch.cat([layer(embeds) for layer in self._keys_values], -1) if len(self._keys_values) else embeds


def reduced(network: torch.nn.Module, parts: Sequence[str]) -> torch.nn.Module:
    """A private UNet, changed in place into the one that takes what `Precomputed` makes of embeddings and times."""
    if PROMPT in parts:
        _cut_out(_keys_values(network))
    if TIMES in parts:
        network.time_embedding = _Given()
        network.get_time_embed = _given
        if network.config.addition_embed_type == TEXT_TIME:
            network.add_embedding = network.add_time_proj = None
            network.get_aug_embed = _added
            return network
        _cut_out(_projections(network))
        for block in _timed(network):
            block.skip_time_act = True
    return network


class TimeTable:
    """t -> its row of a table (n, width), found on the device; a time that is not in it makes its samples NaN."""

    def __init__(self, t: torch.Tensor, rows: torch.Tensor) -> None:
        order = t.argsort()
        limits = torch.finfo(t.dtype) if t.is_floating_point() else torch.iinfo(t.dtype)
        self.t = torch.cat([t[order], t.new_full((1,), limits.max)])
        self.rows = torch.cat([rows[order], rows.new_full((1, rows.shape[1]), float("nan"))])

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """(1, width) of a time (), or (rows, width) of times (rows,)."""
        t = t.reshape(-1).to(self.t.dtype)
        at = torch.searchsorted(self.t, t)
        return self.rows.index_select(0, torch.where(self.t[at] == t, at, len(self.t) - 1))


class _Part(torch.nn.Module):
    """Columns start .. end - 1 of its input, in place of the layer that would have computed them."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self.start : self.end]


class _Given(torch.nn.Module):
    """In place of the time MLP: its input is already its output."""

    def forward(self, sample: torch.Tensor, condition: None = None) -> torch.Tensor:
        return sample


def _given(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """In place of the sinusoids."""
    return timestep


def _added(emb: torch.Tensor, encoder_hidden_states: torch.Tensor, added_cond_kwargs: dict[str, torch.Tensor]) -> Any:
    """In place of the embedding of sizes and pooled texts."""
    return added_cond_kwargs[ADDED]


def _cut_out(layers: Sequence[tuple[torch.nn.Module, str]]) -> None:
    """Replaces each named layer by its part of all their outputs side by side."""
    start = 0
    for owner, name in layers:
        end = start + getattr(owner, name).out_features
        setattr(owner, name, _Part(start, end))
        start = end


def _keys_values(network: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    return [(layer, name) for layer in _cross_attention(network) for name in ("to_k", "to_v")]


def _projections(network: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    return [(block, "time_emb_proj") for block in _timed(network)]


def _layers(named: Sequence[tuple[torch.nn.Module, str]]) -> list[torch.nn.Module]:
    return [getattr(owner, name) for owner, name in named]


def _private(layers: Sequence[torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
    found = torch.nn.ModuleList(layers)
    return private(found, dtype, torch.preserve_format) if layers else found


def _cross_attention(network: torch.nn.Module) -> list[Attention]:
    return [part for part in network.modules() if isinstance(part, Attention) and part.is_cross_attention]


def _timed(network: torch.nn.Module) -> list[ResnetBlock2D]:
    found = [part for part in network.modules() if isinstance(part, ResnetBlock2D)]
    return [block for block in found if block.time_emb_proj is not None]
