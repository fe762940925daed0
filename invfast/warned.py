"""Warnings that point at the caller's line, however deep inside they are found out."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

INSIDE = (f"{Path(__file__).parent}/", warnings.__file__.replace("warnings.py", "contextlib.py"))
"""Files whose frames are ours: the package's, and those of its context managers."""


def warn(message: str) -> None:
    """A UserWarning at the first line outside the package."""
    level, frame = 1, sys._getframe(0)
    while frame is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
