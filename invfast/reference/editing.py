"""Edits long-hand: the source goes down first, what it shows is written down, then the edit goes with it; DDIM's steps.

`unet` is called (x, t, embeddings) and answers with an object whose `sample` is the predicted noise; its attention
layers are modules named attn1 (to themselves) and attn2 (to the words), with the projections to_q, to_k, to_v and
diffusers' own helpers for explicit attention maps. A grid is a list of (t, abar of its node, abar of the node below),
noise end first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Node = tuple[int, float, float]
Told = dict[str, torch.Tensor]
"""Embeddings of the "source", of the "target" and of what guidance goes "away" from, (1, tokens, width) each."""


def running_order(unet: torch.nn.Module, name: str, x: torch.Tensor, t: int, embeds: torch.Tensor) -> list[Any]:
    """Attention modules of a name in the order one evaluation runs them."""
    found: list[Any] = []
    hooks = [
        part.register_forward_pre_hook(lambda module, _: found.append(module))
        for path, part in unet.named_modules()
        if path.split(".")[-1] == name
    ]
    unet(x, t, embeds)
    for hook in hooks:
        hook.remove()
    return found


def ddim_down(x: torch.Tensor, noise: torch.Tensor, above: float, below: float) -> torch.Tensor:
    """x_0 and noise, put together again at the level below."""
    clean = (x - (1 - above) ** 0.5 * noise) / above**0.5
    return below**0.5 * clean + (1 - below) ** 0.5 * noise


def masactrl(
    unet: torch.nn.Module, x: torch.Tensor, told: Told, grid: Sequence[Node], scale: float, step: int, layer: int
) -> list[torch.Tensor]:
    """The edit's latents after every step: from `step` and `layer` on keys and values are those of the source.

    Cao et al., arXiv 2304.08465, algorithm 1.
    """
    projections = [
        projection
        for module in running_order(unet, "attn1", x, grid[0][0], told["source"])[layer:]
        for projection in (module.to_k, module.to_v)
    ]
    source = edit = x
    found = []
    for number, (t, above, below) in enumerate(grid):
        kept: dict[int, torch.Tensor] = {}
        hooks = [p.register_forward_hook(lambda m, _, out, kept=kept: kept.update({id(m): out})) for p in projections]
        noise = unet(source, t, told["source"]).sample
        for hook in hooks:
            hook.remove()
        source = ddim_down(source, noise, above, below)
        hooks = []
        if number >= step:
            hooks = [p.register_forward_hook(lambda m, _, out, kept=kept: kept[id(m)]) for p in projections]
        towards, away = (unet(edit, t, told[name]).sample for name in ("target", "away"))
        for hook in hooks:
            hook.remove()
        edit = ddim_down(edit, away + scale * (towards - away), above, below)
        found.append(edit)
    return found


class Maps:
    """An attention processor that hands every map through a function (map, cross, module) -> map."""

    def __init__(self, change: Callable[[torch.Tensor, bool, Any], torch.Tensor]) -> None:
        self.change = change

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = self.change(attn.get_attention_scores(q, k), encoder_hidden_states is not None, attn)
        out = attn.batch_to_head_dim(torch.bmm(maps, v))
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def prompt_to_prompt(
    unet: torch.nn.Module,
    x: torch.Tensor,
    told: Told,
    grid: Sequence[Node],
    scale: float,
    cross: float,
    self_: float,
    mapped: torch.Tensor,
    mix: torch.Tensor,
    weights: torch.Tensor,
) -> list[torch.Tensor]:
    """The edit's latents after every step: its maps are the source's, by word, for the first steps.

    Hertz et al., arXiv 2208.01626, section 3.2. `mapped` (T, T) goes from words of the source to those of the target,
    `mix` (T,) says which have one, `weights` (T,) scale them. Guidance's other branch is left alone.
    """
    layers = [part for path, part in unet.named_modules() if path.split(".")[-1] in ("attn1", "attn2")]
    before = [layer.processor for layer in layers]
    kept: dict[int, torch.Tensor] = {}

    def write(maps: torch.Tensor, is_cross: bool, module: Any) -> torch.Tensor:
        kept[id(module)] = maps
        return maps

    def use(number: int) -> Callable[[torch.Tensor, bool, Any], torch.Tensor]:
        def change(maps: torch.Tensor, is_cross: bool, module: Any) -> torch.Tensor:
            source = kept[id(module)]
            if is_cross and number < int(cross * len(grid)):
                return ((source @ mapped) * mix + maps * (1 - mix)) * weights
            if not is_cross and number < int(self_ * len(grid)) and maps.shape[-1] <= 16**2:
                return source
            return maps

        return change

    def ask(change: Callable, latents: torch.Tensor, t: int, embeds: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            layer.processor = Maps(change)
        return unet(latents, t, embeds).sample

    source = edit = x
    found = []
    for number, (t, above, below) in enumerate(grid):
        source = ddim_down(source, ask(write, source, t, told["source"]), above, below)
        towards = ask(use(number), edit, t, told["target"])
        away = ask(lambda maps, is_cross, module: maps, edit, t, told["away"])
        edit = ddim_down(edit, away + scale * (towards - away), above, below)
        found.append(edit)
    for layer, processor in zip(layers, before, strict=True):
        layer.processor = processor
    return found


def portrait(
    unet: torch.nn.Module,
    source: torch.Tensor,
    style: torch.Tensor,
    told: Told,
    grid: Sequence[Node],
    blend: float,
    layer: int,
) -> list[torch.Tensor]:
    """The edit's latents after every step, at guidance 1: queries of the source over the style's keys and values.

    `told` has embeddings of the "source", the "style" and the "target".
    """
    chosen = running_order(unet, "attn1", source, grid[0][0], told["source"])[layer:]
    edit, found = source, []
    for t, above, below in grid:
        kept: dict[tuple, torch.Tensor] = {}
        noises = {}
        for name, latents in (("source", source), ("style", style)):
            hooks = [
                part.register_forward_hook(lambda m, _, out, key=(module, name, p), kept=kept: kept.update({key: out}))
                for module in chosen
                for p, part in (("q", module.to_q), ("k", module.to_k), ("v", module.to_v))
            ]
            noises[name] = unet(latents, t, told[name]).sample
            for hook in hooks:
                hook.remove()

        def blended(module: Any, inputs: Any, out: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            parts = {key[1:]: module.head_to_batch_dim(x) for key, x in kept.items() if key[0] is module}
            over = [
                torch.bmm(module.get_attention_scores(parts["source", "q"], parts[name, "k"]), parts[name, "v"])
                for name in ("source", "style")
            ]
            mixed = module.batch_to_head_dim((1 - blend) * over[0] + blend * over[1])
            return module.to_out[1](module.to_out[0](mixed)) / module.rescale_output_factor

        hooks = [module.register_forward_hook(blended) for module in chosen]
        noise = unet(edit, t, told["target"]).sample
        for hook in hooks:
            hook.remove()
        edit = ddim_down(edit, noise, above, below)
        source, style = (ddim_down(x, noises[n], above, below) for n, x in (("source", source), ("style", style)))
        found.append(edit)
    return found


def flow_edit(
    velocity: Callable[[torch.Tensor, float, str], torch.Tensor],
    clean: torch.Tensor,
    sigmas: Sequence[float],
    noises: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The edit at sigma 0: sigmas descend to 0, a noise a step; velocity (x, sigma, "source" or "target").

    Kulikov et al., arXiv 2412.08629, algorithm 1 with one draw a step.
    """
    edit = clean
    for high, low, noise in zip(sigmas, sigmas[1:], noises, strict=False):
        source = (1 - high) * clean + high * noise
        target = edit + source - clean
        edit = edit + (low - high) * (velocity(target, high, "target") - velocity(source, high, "source"))
    return edit
