"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes, private: bool = False) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part; private, for its owner alone."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    # As any new file, with the rights that umask and folder leave it.
    mode = 0o600 if private else 0o666
    file = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names nothing
            said = f"{str(path)!r} cannot be written: {error.strerror}; make room, or name another place"
            raise OSError(error.errno, said) from error
        raise
