"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    file = temporary.open("xb")  # as any new file, with the rights that umask and folder leave it
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
