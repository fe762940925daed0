"""Which token of one prompt is which of another: how Prompt-to-Prompt's maps go from the source to the edit.

Tokens are those of the pipeline's own tokenizer, as its text encoder is given them: one that begins, the text's, one
that ends, and filling up to the model's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def replaced(tokenizer: Any, source: str, target: str) -> torch.Tensor:
    """(T, T) weights from tokens of the source (rows) to those of the target, word by word.

    A word of as many tokens in both gives each its own; one of another number shares the source's maps evenly.

    Raises:
        ValueError: the prompts have other numbers of words.
    """
    first, second = _spans(tokenizer, source), _spans(tokenizer, target)
    if len(first) != len(second):
        raise ValueError(
            f"PromptToPrompt(kind='replace') wants prompts of as many words, got {len(first)} in {source!r} and "
            f"{len(second)} in {target!r}; take kind='refine'"
        )
    length = tokenizer.model_max_length
    found = torch.zeros(length, length)
    found[0, 0] = 1
    ends = [1, 1]
    for a, b in zip(first, second, strict=True):
        block = torch.eye(len(a)) if len(a) == len(b) else torch.full((len(a), len(b)), 1 / len(b))
        found[a.start : a.stop, b.start : b.stop] = block
        ends = [a.stop, b.stop]
    rest = torch.arange(length - max(ends))
    found[ends[0] + rest, ends[1] + rest] = 1
    left = range(ends[1] + len(rest), length)  # a target that is shorter in tokens is filled up longer
    found[length - 1, list(left)] = 1
    return found


def refined(tokenizer: Any, source: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, T) weights as of `replaced`, and (T,) which tokens of the target the source has too.

    Tokens are aligned by their longest common subsequence.
    """
    first, second = (_ids(tokenizer, text) for text in (source, target))
    length = tokenizer.model_max_length
    found, shared = torch.zeros(length, length), torch.ones(length)
    found[0, 0] = 1
    pairs = {b: a for a, b in _common(first, second)}
    for j in range(len(second)):
        if j in pairs:
            found[1 + pairs[j], 1 + j] = 1
        else:
            shared[1 + j] = 0
    for j in range(1 + len(second), length):
        found[min(j - len(second) + len(first), length - 1), j] = 1
    return found, shared


def scaled(tokenizer: Any, target: str, weights: Mapping[str, float]) -> torch.Tensor:
    """(T,) the factor of every token's map.

    Raises:
        ValueError: a word that the prompt does not have.
    """
    found, said = torch.ones(tokenizer.model_max_length), target.split()
    for word, factor in weights.items():
        places = [span for each, span in zip(said, _spans(tokenizer, target), strict=True) if each == word]
        if not places:
            raise ValueError(f"PromptToPrompt weights name {word!r}, and the prompt {target!r} has no such word")
        for span in places:
            found[span.start : span.stop] = factor
    return found


def _spans(tokenizer: Any, text: str) -> list[range]:
    """Where the tokens of every word lie."""
    found, start = [], 1
    for word in text.split():
        found.append(range(start, start + len(_own(tokenizer, word))))
        start = found[-1].stop
    if sum(map(len, found)) != len(_ids(tokenizer, text)):
        raise ValueError(
            f"the tokenizer joins words of {text!r}, so they have no maps of their own; take kind='refine'"
        )
    return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Of a text that fits beside the tokens that begin and end it."""
    found = _own(tokenizer, text)
    room = tokenizer.model_max_length - 2
    if len(found) > room:
        raise ValueError(f"the prompt {text!r} has {len(found)} tokens, and the text encoder takes {room}; shorten it")
    return found


def _own(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _common(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """Places of a longest common subsequence."""
    most = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in reversed(range(len(first))):
        for j in reversed(range(len(second))):
            same = first[i] == second[j]
            most[i][j] = most[i + 1][j + 1] + 1 if same else max(most[i + 1][j], most[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif most[i + 1][j] >= most[i][j + 1]:
            i += 1
        else:
            j += 1
    return found
