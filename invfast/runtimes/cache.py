"""Exported networks on disk: a private folder, one folder an entry, keyed by all that shaped it, checked before use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from invfast.digests import file_digest

logger = logging.getLogger("invfast")

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """One exported network: key, bytes on disk, what it was made from, seconds since the epoch when it was made."""

    key: str
    size: int
    inputs: Mapping[str, Any]
    created: float


class Cache:
    """The entries of a folder.

    Args:
        folder: by default $INVFAST_CACHE, or the user's cache folder.

    Raises:
        PermissionError: the folder is another user's, or others may write into it: an entry is code to be run.
    """

    def __init__(self, folder: Path | None = None) -> None:
        default = os.environ.get("INVFAST_CACHE") or platformdirs.user_cache_dir("invfast")
        self.folder = Path(default) if folder is None else folder
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022):
            raise PermissionError(
                f"cache folder {str(self.folder)!r} can be written to by others, and what lies there is run; "
                "make it yours (chmod 700) or name another in INVFAST_CACHE"
            )

    def entry(self, inputs: Mapping[str, Any], build: Callable[[Path], None], doing: str) -> Path:
        """The folder of an entry, built if it is not there or not whole.

        Args:
            inputs: plain values; all that shapes the result.
            build: fills an empty folder.
            doing: said before a build.
        """
        key = _key(inputs)
        target = self.folder / key
        with FileLock(self.folder / f"{key}.lock"):
            if target.exists():
                wrong = _what_is_wrong(target, inputs)
                if wrong is None:
                    return target
                logger.warning("the cached network %s %s; making it again", target, wrong)
                shutil.rmtree(target)
            self._build(key, inputs, build, doing)
        return target

    def find(self, inputs: Mapping[str, Any]) -> Path | None:
        """The folder of an entry, None where it is not there or not whole; nothing is built."""
        key = _key(inputs)
        with FileLock(self.folder / f"{key}.lock"):
            target = self.folder / key
            return target if target.exists() and _what_is_wrong(target, inputs) is None else None

    def entries(self) -> Iterator[Entry]:
        """What is there, newest first; what has no readable manifest is named by its key alone."""
        found = []
        for folder in self.folder.iterdir():
            if not folder.is_dir() or "." in folder.name:
                continue
            manifest = _manifest(folder) or {}
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            found.append(Entry(folder.name, size, manifest.get("inputs", {}), manifest.get("created", 0.0)))
        return iter(sorted(found, key=lambda entry: -entry.created))

    def remove(self, key: str) -> None:
        """Deletes an entry.

        Raises:
            KeyError: there is none of this key.
        """
        if key not in {entry.key for entry in self.entries()}:
            raise KeyError(f"no cached network {key!r} in {str(self.folder)!r}")
        lock = self.folder / f"{key}.lock"
        with FileLock(lock):
            shutil.rmtree(self.folder / key)

    def _build(self, key: str, inputs: Mapping[str, Any], build: Callable[[Path], None], doing: str) -> None:
        for left in self.folder.glob(f"{key}.*.tmp"):  # of a build that was killed; ours is the only one under the lock
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{key}.", suffix=".tmp"))
        logger.warning("%s; kept in %s", doing, self.folder)
        began = time.perf_counter()
        try:
            build(work)
            files = {
                path.name: {"size": path.stat().st_size, "digest": file_digest(path)} for path in sorted(work.iterdir())
            }
            manifest = {"schema": SCHEMA, "inputs": inputs, "files": files, "created": time.time()}
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in work.iterdir():
                _sync(path)
            work.rename(self.folder / key)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        logger.info("made in %.0f s", time.perf_counter() - began)


def content(folder: Path) -> str:
    """SHA-256 over the digests of an entry's files: what was built, where `inputs` say from what."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _key(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([SCHEMA, inputs], sort_keys=True).encode()).hexdigest()[:32]


def _what_is_wrong(folder: Path, inputs: Mapping[str, Any]) -> str | None:
    manifest = _manifest(folder)
    if manifest is None:
        return "has no readable manifest"
    if manifest.get("schema") != SCHEMA or manifest.get("inputs") != json.loads(json.dumps(inputs)):
        return "was made from something else"
    files = manifest.get("files")
    if not files or {path.name for path in folder.iterdir()} != {*files, MANIFEST}:
        return "has other files than its manifest says"
    for name, said in files.items():
        path = folder / name
        if path.is_symlink() or path.stat().st_size != said["size"] or file_digest(path) != said["digest"]:
            return f"is damaged ({name})"
    return None


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
