"""Editing: what an inversion is for. `edit`, and how: frozen dataclasses of settings, by class or by name."""

from invfast.editing.call import edit
from invfast.editing.editors import (
    EDITORS,
    Direct,
    Editor,
    FlowEdit,
    MasaCtrl,
    Portrait,
    Prompt,
    PromptToPrompt,
    Region,
    resolve,
)
from invfast.editing.masks import read as read_mask

__all__ = [
    "EDITORS",
    "Direct",
    "Editor",
    "FlowEdit",
    "MasaCtrl",
    "Portrait",
    "Prompt",
    "PromptToPrompt",
    "Region",
    "edit",
    "read_mask",
    "resolve",
]
