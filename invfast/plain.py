"""Values as JSON and results hold them: whether one fits an annotation, whether two are the same, and one in a line.

A file may say anything. Its values are held to the annotations of the dataclasses they are for, so that a new field is
checked by being declared.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

LIMIT = 2**63
"""Integers from here on are none that a count, a seed or torch can have."""

LONGEST, PART = 200, 48
"""Characters of a dataclass in one line, and of a field in it."""


def check_fields(cls: type, values: Mapping[str, Any], what: str) -> None:
    """Plain values for the fields of a dataclass, those among them that are plain by their annotation.

    Raises:
        ValueError: a field that the class does not have, or a value of another kind than its annotation; names it.
    """
    hints = _hints(cls)
    known = {field.name for field in fields(cls)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{what} do not fit this version: {name!r} is unknown, expected {sorted(known)}")
        check(value, hints[name], f"{what}: {name}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def check(value: Any, hint: Any, what: str) -> None:
    """Raises ValueError, naming `what`, where `value` is not of the kind that the annotation `hint` says."""
    if not fits(value, hint):
        kind = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
        raise ValueError(f"{what} must be {kind}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value as an error quotes it: what is long is cut."""
    if isinstance(value, int) and not -LIMIT <= value < LIMIT:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a kind: int (no bool) and float as finite numbers, lists where a sequence is asked.

    Kinds that plain values cannot have, such as a tensor, fit anything: their owner checks them.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if hint in (int, float):
        number = isinstance(value, int) or (hint is float and isinstance(value, float))
        return number and not isinstance(value, bool) and -LIMIT <= value < LIMIT and math.isfinite(value)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(each, inner[0]) for each in value)
    if origin is Mapping or hint is dict:
        return isinstance(value, Mapping)
    return True


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, tensors and arrays element by element and NaN to NaN, on whatever device."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return _same_tensors(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__array__") and hasattr(b, "__array__") and hasattr(a, "ndim") and hasattr(b, "ndim"):
        return same(torch.as_tensor(a), torch.as_tensor(b))
    return bool(a == b) or bool(a != a and b != b)


def same_fields(self: Any, other: Any) -> bool:
    """`__eq__` of a dataclass that holds tensors: of one class and all fields the same."""
    if type(self) is not type(other):
        return NotImplemented
    return all(same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))


def line(self: Any) -> str:
    """`__repr__` of a dataclass that holds tensors or long lists: one line of at most `LONGEST` characters.

    Tensors are their dtype and shape, what is long is counted or cut; fields that have their default are left out, like
    those of `repr=False`.
    """
    values = ((field, getattr(self, field.name)) for field in fields(self) if field.repr)
    said = ", ".join(f"{field.name}={_brief(value)}" for field, value in values if value is not field.default)
    return _cut(f"{type(self).__name__}({said}", LONGEST - 1) + ")"


def _brief(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (str, bytes)):
        return _cut(repr(value), PART)
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(map(_brief, value[:5]))
        short = len(value) < 5 and len(text) <= PART
        if not short:
            return f"{type(value).__name__} of {len(value)}"
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    text = repr(value)
    return text if len(text) <= PART else f"{type(value).__name__}(...)"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _same_tensors(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().cpu(), b.detach().cpu()
    return bool(((a == b) | ((a != a) & (b != b))).all())
