"""Class labels, as callers give them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any


def checked(given: Any, batch: int, classes: int | None, known: bool, name: str) -> list[int] | None:
    """One label an image; None where the network knows no classes.

    Args:
        given: a number, or one an image.
        batch: images.
        classes: how many there are, None for any number.
        known: whether the network takes labels.
        name: of the pipeline's class, for errors.

    Raises:
        ValueError: labels are missing, not known, or none of the classes.
    """
    if known != (given is not None):
        needs = "needs class_labels, a number or one an image" if known else "knows no classes; pass no class_labels"
        raise ValueError(f"the network of this {name} {needs}")
    if not known:
        return None
    labels = list(given) if isinstance(given, Sequence) else [given] * batch
    whole = all(isinstance(each, Integral) and not isinstance(each, bool) and each >= 0 for each in labels)
    if len(labels) != batch or not whole or (classes is not None and max(labels) >= classes):
        below = "" if classes is None else f" below {classes}"
        raise ValueError(f"class_labels must be {batch} integers of at least 0{below}, got {given!r}")
    return [int(each) for each in labels]
