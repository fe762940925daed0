"""Methods as they are written on a command line: a name, or a name with settings.

    auto      auto(budget=1.2)      fixed_point(5, anderson)      forward_start(2, anderson)      Auto(target=90.0)

Settings go by their order or by name; a word is a method where the setting is one, and a text elsewhere. What a method
prints of itself is read back. Nothing is evaluated: the syntax tree is walked, and what it may hold is listed here.
"""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from typing import Any, get_type_hints

from invfast import plain
from invfast.methods import CLASSES, Method, resolve

STRANGE = object()
LONGEST = 500
"""Characters; a deeper tree than that of a few methods in each other is none that anyone writes."""


def split(text: str) -> list[str]:
    """Its pieces between commas, those within brackets or quotes left alone; blanks around them are dropped."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        if letter == "," and depth <= 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def parse(text: str) -> Method:
    """The method that a text names, with its settings.

    Raises:
        ValueError: an unknown name, a setting that the method does not have or refuses, or anything but names, numbers,
            texts and methods; says which.
        TypeError: a setting that is a method was given something else.
    """
    text = text.strip()
    if text.isidentifier() and text in CLASSES:
        return CLASSES[text]()
    if "(" not in text:
        return resolve(text)
    return _method(_tree(text), f"method {plain.shown(text)}")


def _tree(text: str) -> ast.expr:
    why = f"it has {len(text)} characters, at most {LONGEST} are read"
    if len(text) <= LONGEST:
        try:
            return ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            why = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
    raise ValueError(
        f"method {plain.shown(text)} cannot be read: {why}; write a name, or a name with settings, as auto(budget=1.2) "
        "or forward_start(2, anderson)"
    )


def _method(node: ast.expr, where: str) -> Method:
    """The method of a name, or of a name with settings in brackets."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"{where}: expected a method's name, got {plain.shown(ast.unparse(call.func))}")
    name = call.func.id
    made = CLASSES[name] if name in CLASSES else resolve(name)
    cls, where = made if isinstance(made, type) else type(made), f"{where}: {name}"
    known = [field.name for field in fields(cls)]
    if len(call.args) > len(known):
        raise ValueError(f"{where} has {len(known)} settings ({', '.join(known)}), got {len(call.args)}")
    given = [*zip(known, call.args, strict=False), *((each.arg, each.value) for each in call.keywords)]
    hints, settings = get_type_hints(cls), {}
    for setting, value in given:
        if setting not in known:
            raise ValueError(f"{where} has no setting {setting or '**'!r}; expected {', '.join(known) or 'none'}")
        if setting in settings:
            raise ValueError(f"{where} is given {setting!r} twice")
        settings[setting] = _value(value, hints[setting], f"{where} {setting}")
    return made(**settings) if isinstance(made, type) else replace(made, **settings)


def _value(node: ast.expr, hint: Any, where: str) -> Any:
    """A number, text, True, False, None, or several in brackets, of the setting's kind; a method where that is one."""
    if hint is Method:
        return _method(node, where)
    value = tuple(map(_plain, node.elts)) if isinstance(node, (ast.Tuple, ast.List)) else _plain(node)
    every = value if isinstance(value, tuple) else (value,)
    if any(each is STRANGE for each in every) or not plain.fits(value, hint):
        kind = hint.__name__ if isinstance(hint, type) else str(hint)
        raise ValueError(f"{where} must be {kind}, got {plain.shown(ast.unparse(node))}")
    return value


def _plain(node: ast.expr) -> Any:
    """What a literal or a word stands for; STRANGE of anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _plain(node.operand)
        return -value if type(value) in (int, float) else STRANGE
    value = node.id if isinstance(node, ast.Name) else getattr(node, "value", STRANGE)
    return value if type(value) in (int, float, bool, str, type(None)) else STRANGE
