"""What the cache does with its folder: it survives whatever lies there, and says which folder an error is about."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs


def default_folder() -> Path:
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
def named(folder: Path, only: Callable[[Path, Exception], bool] | None = None) -> Iterator[None]:
    """What the operating system refuses is an error of the same class that names the cache's folder and the remedy.

    Args:
        only: which errors are the folder's; by default all that the operating system raises.
    """
    try:
        yield
    except Exception as error:
        # NotImplementedError: what older versions of filelock raise where a file system knows no locks
        ours = only(folder, error) if only else isinstance(error, (OSError, NotImplementedError))
        if not ours or "INVFAST_CACHE" in str(error):
            raise
        raise OSError(
            getattr(error, "errno", None) or (errno.ENOSPC if only else errno.ENOSYS),
            f"cache folder {str(folder)!r} cannot be used: {error}; make room and make it writable, "
            "or name another in INVFAST_CACHE",
        ) from error


def is_full(folder: Path, error: Exception) -> bool:
    """Whether a build failed for want of room: libraries say so in ways of their own."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(folder).free < 2**20


def read_json(path: Path, most: int) -> Any:
    """What a file of at most so many bytes says; None where that is not JSON, or JSON that none of ours would hold."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if _plain(value) else None


def _plain(value: Any, levels: int = 16) -> bool:
    """Whether a value from JSON can be printed, compared and written again: no NaN, half characters or deep nesting."""
    if isinstance(value, dict):
        return _plain([*value, *value.values()], levels)
    if isinstance(value, list):
        return levels > 0 and all(_plain(each, levels - 1) for each in value)
    if isinstance(value, str):
        return not any("\ud800" <= each <= "\udfff" for each in value)
    return not isinstance(value, float) or math.isfinite(value)


def is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)  # which, unlike Path's, never raise


def size_of(folder: Path) -> int:
    found = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another process may delete it now
                found += os.lstat(os.path.join(root, name)).st_size
    return found


def set_aside(path: Path) -> Path:
    """Takes an entry, whatever it is, out of its place at once, so that no part of it is ever left there."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    path.rename(aside)
    return aside


def delete(path: Path) -> None:
    """Deletes what it can of a file, a link or a folder."""
    if is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    handle, new = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with open(handle, "w") as file:
            file.write(text)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
