"""Keys as files: a few lines of JSON, written atomically for the owner alone, read with mistrust.

    {"format": "invfast.watermark-key", "schema": 1, "kind": ..., "settings": {...}, "sha256": ...}

The digest finds damage, no forgery: who can write the file can write its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from invfast import plain
from invfast.files import write_atomically
from invfast.watermark.base import Key
from invfast.watermark.gaussian_shading import GaussianShading
from invfast.watermark.ring_id import RingID
from invfast.watermark.tree_ring import TreeRing

KINDS: dict[str, type[Key]] = {cls.kind: cls for cls in (TreeRing, GaussianShading, RingID)}
"""Schemes by name."""
FORMAT, SCHEMA = "invfast.watermark-key", 1
LARGEST = 1 << 24
"""Bytes; a message of a bit an element of latents (16, 512, 512) is a quarter of it."""


def save_key(key: Key, path: str | os.PathLike[str]) -> None:
    """Writes a key's file. It holds the secret: only its owner may read it.

    Raises:
        TypeError: no key.
        OSError: the folder does not exist or cannot be written to.
    """
    if not isinstance(key, Key):
        raise TypeError(f"key must be one of {', '.join(cls.__name__ for cls in KINDS.values())}, got {key!r}")
    text = json.dumps({**_said(key), "sha256": fingerprint_of(key)}, indent=1)
    write_atomically(Path(path), f"{text}\n".encode(), private=True)


def fingerprint_of(key: Key) -> str:
    """What a key goes by in public, the SHA-256 that its file has too; nobody comes from it to the secret."""
    return _digest(_said(key))


def load_key(path: str | os.PathLike[str]) -> Key:
    """The key of a file.

    Raises:
        FileNotFoundError: no such file. Other OSErrors: it cannot be opened.
        ValueError: it is no key's file, of a schema that this version does not know, damaged, or says what no key can
            be; names the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"key file {str(path)!r} does not exist")
    try:
        return _made(_read(path))
    except KeyError as error:
        raise ValueError(f"key file {str(path)!r} cannot be used: it lacks {error}") from error
    except RecursionError as error:
        raise ValueError(f"key file {str(path)!r} cannot be used: its JSON is nested too deeply") from error
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"key file {str(path)!r} cannot be used: {error}") from error


def _said(key: Key) -> dict[str, Any]:
    return {"format": FORMAT, "schema": SCHEMA, "kind": key.kind, "settings": asdict(key)}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("it is a folder, or something else that is no file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has {path.stat().st_size} bytes, a key at most {LARGEST}")
    said = json.loads(path.read_bytes().decode())
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError(f"it is no {FORMAT} file")
    return said


def _made(said: dict[str, Any]) -> Key:
    if said.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {plain.shown(said.get('schema'))}, this version of invfast reads {SCHEMA}")
    if said.pop("sha256") != _digest(said):
        raise ValueError("its contents do not match its SHA-256, the file is damaged")
    kind, settings = said["kind"], said["settings"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind {plain.shown(kind)}; expected one of {', '.join(KINDS)}")
    if not isinstance(settings, dict):
        raise ValueError(f"settings must be names and values, got {plain.shown(settings)}")
    plain.check_fields(KINDS[kind], settings, f"settings of {kind}")
    return KINDS[kind](**settings)


def _digest(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
