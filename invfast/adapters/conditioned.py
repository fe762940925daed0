"""A predictor whose text embeddings can be replaced from call to call, one branch asked alone, and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from invfast.adapters.predictor import Predictor

EMBEDS = "encoder_hidden_states"
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
        return self._ask(rows, t, **static).chunk(self.branches)

    def branch(
        self,
        which: int,
        x: torch.Tensor,
        t: torch.Tensor,
        embeds: torch.Tensor,
        samples: Sequence[int],
        gradient: bool = False,
    ) -> tuple[torch.Tensor, Pullback | None]:
        """One branch of some images, 0 the conditional one: its output, and on request how the embeddings shape it.

        Where images may not be left out the network is asked for all of them, in one batch of this branch.

        Args:
            which: 0 or 1.
            x, embeds: of all images, (B, C, h, w) and (B, tokens, width).
            samples: the n images that count, in ascending order; output and gradient are of these alone.
            gradient: whether to return, as second value, the map from a cotangent of the output to one of the
                embeddings, in their dtype; it can be called once.

        Raises:
            RuntimeError: the network's output cannot be differentiated.
        """
        batch = len(self.counts.evaluations)
        asked = list(samples) if self.dynamic_batch else list(range(batch))
        self.counts.add(len(asked), samples)
        chosen = [which * batch + j for j in asked]
        static = {name: value[chosen] for name, value in self.static.items() if name != EMBEDS}
        x, embeds = x[asked].to(self.input_dtype), embeds[asked]
        wanted = [asked.index(j) for j in samples]
        if not gradient:
            output = self._ask(x, t, **static, **{EMBEDS: self.prompt(embeds.to(self.input_dtype))})
            return output[wanted], None
        return self._differentiable(x, t, static, embeds, wanted)

    def _differentiable(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        static: dict[str, torch.Tensor],
        embeds: torch.Tensor,
        wanted: list[int],
    ) -> tuple[torch.Tensor, Pullback]:
        # The loop runs in inference mode, whose tensors autograd refuses; copies made outside are ordinary ones.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = embeds.clone().requires_grad_()
            static = {name: value.clone() for name, value in static.items()}
            static[EMBEDS] = self.prompt(leaf.to(self.input_dtype))
            output = self._ask(x.clone(), t.clone(), **static)[wanted]
        if not output.requires_grad:
            raise RuntimeError(
                "the network's output does not depend on its embeddings as far as autograd can see; remove what runs "
                "it without gradients (offload hooks, torch.no_grad)"
            )

        def pullback(cotangent: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(False):
                # Of the embeddings alone: the caller's weights keep what gradients they have.
                return torch.autograd.grad(output, leaf, cotangent.to(output.dtype).clone())[0][wanted]

        return output.detach(), pullback


def alike(positive: Static, negative: Static | None) -> tuple[Static, Static | None]:
    """Both branches with as many tokens, for they run as one batch: the shorter is repeated to the longer.

    That is exact: attention over keys and values that all occur k times is attention over them once. Padding is not,
    as the network is given no mask.

    Raises:
        ValueError: one length is no multiple of the other.
    """
    if negative is None or EMBEDS not in positive:
        return positive, negative
    lengths = [branch[EMBEDS].shape[1] for branch in (positive, negative)]
    most = max(lengths)
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
