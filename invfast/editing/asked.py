"""What the rows of an edit are told: their prompts, and what the control between them is to do when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from invfast import arguments
from invfast.adapters import Adapter, Prompts
from invfast.arguments import Text
from invfast.denoiser import Condition
from invfast.editing import rows, words
from invfast.editing.attention import MASACTRL, PORTRAIT
from invfast.editing.editors import Editor, FlowEdit, Portrait, PromptToPrompt, innermost
from invfast.following import untold
from invfast.inversion import Inversion

NEVER = 2**62
"""A limit in time that nothing reaches."""


class Asked:
    """What the rows of a call are told.

    Args:
        model: of one row.
        inversion, prompt, negative_prompt, guidance_scale, style, conditions: of the call.
    """

    def __init__(
        self,
        model: Adapter,
        inversion: Inversion,
        prompt: Text,
        negative_prompt: Text | None,
        guidance_scale: float,
        style: Inversion | None,
        conditions: Mapping[str, Any],
    ) -> None:
        self.model, self.inversion, self.scale, self.style = model, inversion, guidance_scale, style
        self.batch, self.x = len(inversion), inversion.latents.to(model.device, model.latent_dtype)
        self.target, negative = arguments.texts(self.batch, prompt, negative_prompt, None, None)
        told = {**untold(inversion, prompt, negative_prompt or ""), **conditions}
        self.prompts = Prompts(self.target, negative, more=model.check(self.batch, told))

    def condition(self, editor: Editor) -> Condition:
        """Of all rows."""
        if editor.rows == 1:
            return self.model.condition(self.x, self.prompts, self.scale)
        inner = innermost(editor)
        each = [self._source(self.inversion, inner)]
        if editor.rows == 3:
            each.append(self._source(self.style, inner))
        each.append(self.model.condition(self.x, self.prompts, self._run(inner, self.scale)))
        return rows.together(each, self._control(inner))

    def _run(self, inner: Editor, scale: float) -> float:
        """The scale that a row is conditioned at: above 1 for all rows where any of them runs a second branch."""
        if isinstance(inner, FlowEdit) and self.model.guidance(max(self.scale, inner.source_guidance)) > 1:
            return max(self.scale, inner.source_guidance)
        return scale

    def _source(self, inversion: Inversion, inner: Editor) -> Condition:
        """Of a row that goes down as it went up: under guidance both branches say the same, which no scale changes."""
        more = self.model.check(self.batch, inversion.conditions)
        said = Prompts(inversion.prompt, self.prompts.negative, more=more)
        if isinstance(inner, FlowEdit):
            return self.model.condition(self.x, said, self._run(inner, inner.source_guidance))
        guided = self.model.guidance(self.scale) > 1
        positive, _ = self.model.condition(self.x, said, 1.0 if guided else inversion.guidance_scale)
        return positive, positive if guided else None

    def _control(self, inner: Editor) -> list[dict[str, torch.Tensor]] | None:
        """What the control is told in each branch, (B, ...) each."""
        if inner.control is None:
            return None
        if inner.control.kind in (MASACTRL, PORTRAIT):
            told = {"below": self._limits(_below(self.inversion, inner.step))}
            if isinstance(inner, Portrait):
                told["blend"] = torch.full((self.batch,), float(inner.blend), device=self.model.device)
            return [told, told]
        told = self._words(inner)
        never = {name: self._limits(NEVER) for name in ("cross", "self")}  # as published: the guided branch alone
        return [told, {**told, **never}]

    def _words(self, inner: PromptToPrompt) -> dict[str, torch.Tensor]:
        tokenizer, found = self.model.encoders()["tokenizer"], []
        for source, target in zip(self.inversion.prompt, self.target, strict=True):
            kind = inner.kind or ("replace" if len(source.split()) == len(target.split()) else "refine")
            if kind == "replace":
                mapped = words.replaced(tokenizer, source, target)
                mix = torch.ones(len(mapped))
            else:
                mapped, mix = words.refined(tokenizer, source, target)
            found.append((mapped, mix, words.scaled(tokenizer, target, dict(inner.weights))))
        stacked = (torch.stack(each).to(self.model.device) for each in zip(*found, strict=True))
        limits = {"cross": _above(self.inversion, inner.cross), "self": _above(self.inversion, inner.self_)}
        return {
            **dict(zip(("map", "mix", "scale"), stacked, strict=True)),
            **{n: self._limits(v) for n, v in limits.items()},
        }

    def _limits(self, value: int) -> torch.Tensor:
        return torch.full((self.batch,), value, dtype=torch.long, device=self.model.device)


def _below(inversion: Inversion, step: int) -> int:
    """The time from which on, downwards, something acts that begins at a step counted from the noise."""
    left = inversion.node - step
    return rows.ticks(float(inversion.schedule.t[left])) if left > 0 else -1


def _above(inversion: Inversion, share: float) -> int:
    """The time above which something acts for the first share of the steps."""
    taken = int(share * inversion.node)
    return rows.ticks(float(inversion.schedule.t[inversion.node - taken])) if taken else NEVER
