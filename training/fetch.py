"""Packages of the registries, by their ordinary clients, unpacked once into a folder."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path


def npm_package(name: str, version: str, folder: Path) -> Path:
    """The unpacked folder of an npm package."""

    def make(work: Path) -> Path:
        _run(["npm", "pack", f"{name}@{version}", "--silent"], work)
        (archive,) = work.glob("*.tgz")
        _run(["tar", "xzf", archive.name], work)  # Python's own has no safe way before 3.11.4, Debian 12 has 3.11.2
        return work / "package"

    return _once(folder / f"{name}-{version}", make)


def debian_package(name: str, folder: Path) -> Path:
    """The unpacked tree of a Debian package, as the machine's release has it."""

    def make(work: Path) -> Path:
        try:
            _run(["apt-get", "download", name], work)
        except RuntimeError:  # package lists are missing or old
            _run(["apt-get", "update", "-q"], work)
            _run(["apt-get", "download", name], work)
        (archive,) = work.glob("*.deb")
        _run(["dpkg-deb", "-x", archive.name, "tree"], work)
        return work / "tree"

    return _once(folder / name, make)


def _once(target: Path, make) -> Path:
    """What `make` leaves in a scratch folder, moved to `target` when it is whole."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            print(f"fetching {target.name}", flush=True)
            make(Path(work)).rename(target)
    return target


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"the training data needs {command[0]}, which is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
