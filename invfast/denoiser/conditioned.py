"""A predictor whose text embeddings can be replaced from call to call, one branch asked alone, and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from invfast.denoiser.precompute import EMBEDS, MASK
from invfast.denoiser.predictor import Predictor, scatter

Static = dict[str, torch.Tensor]
Pullback = Callable[[torch.Tensor], torch.Tensor]


class Conditioned(Predictor):
    """A Predictor of a network with text embeddings, the static input "encoder_hidden_states".

    Args:
        prompt: embeddings -> what the network takes in their place, differentiable; None where it takes them.
        given, named: as in Predictor.
    """

    def __init__(self, *given: Any, prompt: Callable[[torch.Tensor], torch.Tensor] | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self.prompt = prompt or (lambda embeds: embeds)

    def under(self, x: torch.Tensor, t: torch.Tensor, embeds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """All images with other embeddings, (B, tokens, width) a branch; the rest of the condition stays."""
        self.counts.add(len(x) * self.branches)
        static = {**self.static, EMBEDS: self.prompt(torch.cat(list(embeds)).to(self.input_dtype))}
        rows = torch.cat([x] * self.branches).to(self.input_dtype)
        return self._outputs(rows, t, static)

    def branch(
        self,
        which: int,
        x: torch.Tensor,
        t: torch.Tensor,
        embeds: torch.Tensor,
        samples: list[int] | None = None,
        gradient: bool = False,
    ) -> tuple[torch.Tensor, Pullback | None]:
        """One branch, 0 the conditional one: its output, and on request how the embeddings shape it.

        Args:
            which: 0 or 1.
            x, embeds: (B, C, h, w) and (B, tokens, width).
            samples: the images that count, in ascending order; None for all. The rows of others hold anything finite.
                The network is asked for these alone where it may be.
            gradient: whether to return, as second value, the map from a cotangent of the output to one of the
                embeddings, in their dtype; it can be called once.

        Raises:
            RuntimeError: the network's output cannot be differentiated.
        """
        batch = len(x)
        some = self.dynamic_batch and samples is not None and len(samples) < batch
        self.counts.add(len(samples) if some else batch, samples)
        static = {n: value.chunk(self.branches)[which] for n, value in self.static.items() if n != EMBEDS}
        x = x.to(self.input_dtype)
        if some:
            x, embeds = x[samples], embeds[samples]
            static = {name: value[samples] for name, value in static.items()}
        if gradient:
            output, pullback = self._differentiable(x, t, static, embeds)
        else:
            output = self._ask(x, t, **static, **{EMBEDS: self.prompt(embeds.to(self.input_dtype))})
            pullback = None
        if not some:
            return output, pullback
        return scatter(output, samples, batch), pullback and (lambda c: scatter(pullback(c[samples]), samples, batch))

    def _differentiable(
        self, x: torch.Tensor, t: torch.Tensor, static: Static, embeds: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        # The loop runs in inference mode, whose tensors autograd refuses; copies made outside are ordinary ones.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = embeds.clone().requires_grad_()
            static = {name: value.clone() for name, value in static.items()}
            static[EMBEDS] = self.prompt(leaf.to(self.input_dtype))
            output = self._ask(x.clone(), t.clone(), **static)
        if not output.requires_grad:
            raise RuntimeError(
                "the network's output does not depend on its embeddings as far as autograd can see; remove what runs "
                "it without gradients (offload hooks, torch.no_grad)"
            )

        def pullback(cotangent: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(False):
                # Of the embeddings alone: the caller's weights keep what gradients they have.
                return torch.autograd.grad(output, leaf, cotangent.to(output.dtype).clone())[0]

        return output.detach(), pullback


def alike(positive: Static, negative: Static | None, repeats: bool = True) -> tuple[Static, Static | None]:
    """Both branches with as many tokens, for they run as one batch: the shorter is repeated to the longer.

    That is exact: attention over keys and values that all occur k times is attention over them once. Padding is not,
    as the network is given no mask; where it is, that is what is done. Nor is repeating where `repeats` is False, and
    the text stands beside something else.

    Raises:
        ValueError: one length is no multiple of the other, or they differ where nothing may be repeated.
    """
    if negative is None or EMBEDS not in positive:
        return positive, negative
    lengths = [branch[EMBEDS].shape[1] for branch in (positive, negative)]
    most = max(lengths)
    if MASK in positive:
        return longer(positive, most), longer(negative, most)
    if most > min(lengths) and not repeats:
        raise ValueError(
            f"prompt_embeds and negative_prompt_embeds must have as many tokens for this network, got {lengths[0]} and "
            f"{lengths[1]}"
        )
    if most % min(lengths):
        raise ValueError(
            f"the prompt has {lengths[0]} tokens and the negative prompt {lengths[1]}: guidance runs both in one "
            "batch, so one length must be a multiple of the other; pass prompt_embeds and negative_prompt_embeds of "
            "one length"
        )
    first, second = (
        {**branch, EMBEDS: branch[EMBEDS].repeat(1, most // length, 1) if length < most else branch[EMBEDS]}
        for branch, length in zip((positive, negative), lengths, strict=True)
    )
    return first, second


def longer(branch: Static, tokens: int) -> Static:
    """A branch with a mask, (B, tokens, width) and (B, tokens): tokens that are no words at the end, to that many."""
    more = tokens - branch[EMBEDS].shape[1]
    pad = torch.nn.functional.pad
    return {**branch, EMBEDS: pad(branch[EMBEDS], (0, 0, 0, more)), MASK: pad(branch[MASK], (0, more))}
