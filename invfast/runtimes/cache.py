"""Exported networks on disk: a private folder, one folder an entry, keyed by all that shaped it, checked before use."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from invfast.digests import file_digest

logger = logging.getLogger("invfast")

SCHEMA = 1
MANIFEST = "manifest.json"
NOTE_BYTES = 65_536
"""The most a remembered value may take."""


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
        OSError: there is no such folder and it cannot be made, or no home folder is known to make it in.
        PermissionError: the folder is another user's, or others may write into it: an entry is code to be run.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = _default() if folder is None else folder
        with _named(self.folder):
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
            size = _size(folder)
            found.append(Entry(folder.name, size, manifest.get("inputs", {}), manifest.get("created", 0.0)))
        return iter(sorted(found, key=lambda entry: -entry.created))

    def remove(self, key: str) -> None:
        """Deletes an entry.

        Raises:
            KeyError: there is none of this key.
        """
        missing = KeyError(f"no cached network {key!r} in {str(self.folder)!r}")
        if key not in {entry.key for entry in self.entries()}:
            raise missing
        with FileLock(self.folder / f"{key}.lock"):
            if not (self.folder / key).is_dir():  # another thread or process was first
                raise missing
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


def _default() -> Path:
    given = os.environ.get("INVFAST_CACHE")
    if given:
        return Path(given)
    try:
        found = platformdirs.user_cache_dir("invfast")
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, f"{error}; or name a cache folder in INVFAST_CACHE") from error
    if found.startswith("~"):  # what older versions of platformdirs give where there is no home
        raise FileNotFoundError(errno.ENOENT, "no home folder is known; name a cache folder in INVFAST_CACHE")
    return Path(found)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """What the operating system refuses is an error of the same class that names the cache's folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cache folder {str(folder)!r} cannot be used: {error}; make room and make it writable, "
            "or name another in INVFAST_CACHE",
        ) from error


def remember(inputs: Mapping[str, Any], value: Any) -> None:
    """Keeps a small value that was measured; where the cache cannot be written to, only a debug log says so.

    Args:
        inputs: plain values; all that shapes it, its own name among them.
        value: plain, of at most NOTE_BYTES as JSON; not None, which is what `remembered` says where there is none.

    Raises:
        TypeError, ValueError: the value cannot be written as JSON, or is too large.
    """
    body = [inputs, value]
    text = json.dumps({"body": body, "digest": _body_digest(body)}, allow_nan=False)
    if len(text) > NOTE_BYTES:
        raise ValueError(f"a value to remember takes at most {NOTE_BYTES} bytes as JSON, got {len(text)}")
    try:
        path = _note(Cache(), inputs)
        handle, new = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
        try:
            with open(handle, "w") as file:
                file.write(text)
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        logger.debug("not remembered: %s", error)


def remembered(inputs: Mapping[str, Any]) -> Any:
    """What `remember` kept for these inputs, in any process; None where there is none, or none that is whole."""
    try:
        path = _note(Cache(), inputs)
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > NOTE_BYTES:
            return None
        kept = json.loads(path.read_bytes())
        body, digest = kept["body"], kept["digest"]
        whole = digest == _body_digest(body) and body[0] == json.loads(json.dumps(inputs))
        return body[1] if whole else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        logger.debug("nothing remembered can be read: %s", error)
        return None


def _note(cache: Cache, inputs: Mapping[str, Any]) -> Path:
    return cache.folder / f"{_key(inputs)}.note"


def _body_digest(body: list[Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


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


def _size(folder: Path) -> int:
    """Bytes of what is there now; another thread or process may be removing it."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(path, name)).st_size
    return size


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
