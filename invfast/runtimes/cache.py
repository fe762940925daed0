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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from invfast.digests import file_digest
from invfast.runtimes import disk

logger = logging.getLogger("invfast")

SCHEMA = 1
MANIFEST = "manifest.json"
NOTE_BYTES, MANIFEST_BYTES = 65_536, 16_777_216
"""The most a remembered value and a manifest may take."""
_NO_LOCK = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""How a lock's file that is none is refused; in a folder that is ours alone it may be replaced."""


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
        self.folder = disk.default_folder() if folder is None else folder
        with disk.named(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022):
            raise PermissionError(
                f"cache folder {str(self.folder)!r} can be written to by others, and what lies there is run; "
                "make it yours (chmod 700) or name another in INVFAST_CACHE"
            )

    def entry(self, inputs: Mapping[str, Any], build: Callable[[Path], None], doing: str, room: int = 0) -> Path:
        """The folder of an entry, built if it is not there or not whole; one that is whole is only read.

        Args:
            inputs: plain values; all that shapes the result.
            build: fills an empty folder.
            doing: said before a build.
            room: bytes that a build takes on disk, as far as they are known.

        Raises:
            OSError: it must be built and the folder cannot be written to, or has no room; whatever `build` raises.
        """
        found = self.find(inputs)  # without a lock: an entry appears whole or not at all
        if found:
            return found
        key = _key(inputs)
        target = self.folder / key
        with self._locked(key):
            if os.path.lexists(target):
                wrong = _what_is_wrong(target, inputs)
                if wrong is None:
                    return target
                logger.warning("the cached network %s %s; making it again", target, wrong)
                with disk.named(self.folder):
                    disk.delete(disk.set_aside(target))
            self._build(key, inputs, build, doing, room)
        return target

    def find(self, inputs: Mapping[str, Any]) -> Path | None:
        """The folder of an entry, None where it is not there or not whole; nothing is built."""
        target = self.folder / _key(inputs)
        return target if _what_is_wrong(target, inputs) is None else None

    def entries(self) -> Iterator[Entry]:
        """What is there, newest first; what has no readable manifest is named by its key alone."""
        found = []
        with disk.named(self.folder):
            folders = [each for each in self.folder.iterdir() if disk.is_folder(each)]
        for folder in folders:
            if not (folder.name.isascii() and folder.name.isalnum()):  # no key: a build that runs, or not ours
                continue
            manifest = _manifest(folder) or {}
            inputs = manifest.get("inputs")
            created = _created(manifest) or 0.0
            found.append(Entry(folder.name, disk.size_of(folder), inputs if isinstance(inputs, dict) else {}, created))
        return iter(sorted(found, key=lambda entry: -entry.created))

    def remove(self, key: str) -> None:
        """Deletes an entry.

        Raises:
            KeyError: there is none of this key.
            OSError: it cannot be deleted.
        """
        missing = KeyError(f"no cached network {key!r} in {str(self.folder)!r}")
        if key not in {entry.key for entry in self.entries()}:
            raise missing
        with self._locked(key), disk.named(self.folder):
            if not (self.folder / key).is_dir():  # another thread or process was first
                raise missing
            shutil.rmtree(disk.set_aside(self.folder / key))

    def try_out(self, room: int = 0) -> None:
        """Writes a small file under a lock, as a build would.

        Args:
            room: bytes that must be free.

        Raises:
            OSError: it cannot be done, or there is less room; says why and what to do.
        """
        with disk.named(self.folder):
            # Where there are files without a name this is one: nothing is left of it by a kill.
            with FileLock(self.folder / "try.lock"), tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(4096))
                file.flush()
            free = shutil.disk_usage(self.folder).free
            if free < room:
                raise OSError(
                    errno.ENOSPC, f"{free / 1e9:.1f} GB are free where {room / 1e9:.1f} GB are needed for an export"
                )

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self.folder / f"{key}.lock"
        lock = FileLock(path)
        with disk.named(self.folder):
            try:
                lock.acquire()
            except OSError as error:
                if error.errno not in _NO_LOCK:
                    raise
                disk.delete(path)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _build(self, key: str, inputs: Mapping[str, Any], build: Callable[[Path], None], doing: str, room: int) -> None:
        for left in self.folder.glob(f"{key}.*.tmp"):  # of a build that was killed; ours is the only one under the lock
            disk.delete(left)
        self.try_out(room)
        with disk.named(self.folder):
            work = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{key}.", suffix=".tmp"))
        logger.warning("%s; kept in %s", doing, self.folder)
        began = time.perf_counter()
        try:
            with disk.named(self.folder, only=disk.is_full):
                build(work)
            with disk.named(self.folder):
                files = {
                    path.name: {"size": path.stat().st_size, "digest": file_digest(path)}
                    for path in sorted(work.iterdir())
                }
                manifest = {"schema": SCHEMA, "inputs": inputs, "files": files, "created": time.time()}
                (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
                for path in work.iterdir():
                    disk.sync(path)
                work.rename(self.folder / key)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        logger.info("made in %.0f s", time.perf_counter() - began)


def unusable(room: int = 0) -> str | None:
    """Why nothing can be exported into the process's own cache, and the remedy; None where it can.

    Args:
        room: bytes that must be free.
    """
    try:
        Cache().try_out(room)
    except OSError as error:
        return error.strerror or str(error)
    return None


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
        disk.write(_note(Cache(), inputs), text)
    except OSError as error:
        logger.debug("not remembered: %s", error)


def remembered(inputs: Mapping[str, Any]) -> Any:
    """What `remember` kept for these inputs, in any process; None where there is none, or none that is whole."""
    try:
        kept = disk.read_json(_note(Cache(), inputs), NOTE_BYTES)
    except OSError as error:
        logger.debug("nothing remembered: %s", error)
        return None
    body = kept.get("body") if isinstance(kept, dict) else None
    if not isinstance(body, list) or len(body) != 2 or kept.get("digest") != _body_digest(body):
        return None
    return body[1] if body[0] == json.loads(json.dumps(inputs)) else None


def _note(cache: Cache, inputs: Mapping[str, Any]) -> Path:
    return cache.folder / f"{_key(inputs)}.note"


def _body_digest(body: list[Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def content(folder: Path) -> str:
    """SHA-256 over the digests of an entry's files: what was built, where `inputs` say from what.

    Raises:
        ValueError: it has no readable manifest any more.
    """
    files = (_manifest(folder) or {}).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"the cached network {str(folder)!r} has no readable manifest; delete it (invfast cache rm)")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _key(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([SCHEMA, inputs], sort_keys=True).encode()).hexdigest()[:32]


def _what_is_wrong(folder: Path, inputs: Mapping[str, Any]) -> str | None:
    if not disk.is_folder(folder):
        return "is no folder"
    manifest = _manifest(folder)
    if manifest is None:
        return "has no readable manifest"
    if manifest.get("schema") != SCHEMA or manifest.get("inputs") != json.loads(json.dumps(inputs)):
        return "was made from something else"
    files = manifest.get("files")
    if not isinstance(files, dict) or _created(manifest) is None:
        return "has a manifest of odd values"
    try:
        if not files or set(os.listdir(folder)) != {*files, MANIFEST}:
            return "has other files than its manifest says"
        for name, said in files.items():
            if not isinstance(said, dict) or not _is(folder / name, said.get("size"), said.get("digest")):
                return f"is damaged ({name})"
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, of a file it cannot open
        return f"cannot be read ({error})"
    return None


def _is(path: Path, size: Any, digest: Any) -> bool:
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size and file_digest(path) == digest


def _manifest(folder: Path) -> dict[str, Any] | None:
    found = disk.read_json(folder / MANIFEST, MANIFEST_BYTES)
    return found if isinstance(found, dict) else None


def _created(manifest: Mapping[str, Any]) -> float | None:
    """Seconds since the epoch; None where it says anything else, or later than the year 3000, where calendars end."""
    found = manifest.get("created")
    return float(found) if type(found) in (int, float) and 0 <= found < 32_503_680_000 else None
